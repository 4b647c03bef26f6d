"""Held-out natural text: Newton's Opticks (1730, public domain), which every vLLM install carries
inside the apache-tvm-ffi package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from vllm_headaware.errors import HeadAwareError

PACKAGE = "apache-tvm-ffi"
NAME = "Isaac.Newton-Opticks.txt"


def held_out_text() -> str:
    """The whole text; profiles are never measured on it.

    Raises:
        HeadAwareError: the package that carries it is not installed.
    """
    try:
        found = [file for file in files(PACKAGE) or () if file.name == NAME]
    except PackageNotFoundError:
        found = []
    if not found:
        raise HeadAwareError(
            f"no held-out text: {NAME} comes with the package {PACKAGE}, which is not installed"
        )
    return Path(str(found[0].locate())).read_text(encoding="utf-8", errors="replace")


def half_of_text(split: str) -> str:
    """The first half of the text is for calibration, the second for evaluation.

    Raises:
        HeadAwareError: unknown split.
    """
    if split not in ("calibration", "evaluation"):
        raise HeadAwareError(f"split must be calibration or evaluation, got {split!r}")
    text = held_out_text()
    half = len(text) // 2
    return text[:half] if split == "calibration" else text[half:]


def text_windows(tokenizer: Any, *, split: str, count: int, tokens: int) -> list[list[int]]:
    """Passages of exactly `tokens` token ids, evenly spread over a split's half of the text.

    Raises:
        HeadAwareError: unknown split, or passages that would overlap.
    """
    return evenly_spread(tokenizer, half_of_text(split), f"{split} text", count, tokens)


def evenly_spread(tokenizer: Any, text: str, what: str, count: int, tokens: int) -> list[list[int]]:
    """Passages of exactly `tokens` token ids, evenly spread over a text.

    Raises:
        HeadAwareError: passages that would overlap; `what` is the text's name.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    step = len(ids) // count
    if step < tokens:
        raise HeadAwareError(
            f"the {what} has {len(ids)} tokens, not enough for {count} passages of {tokens}; ask"
            " for fewer or shorter ones"
        )
    return [ids[i * step : i * step + tokens] for i in range(count)]
