"""Source code of Python's standard library, which every installation carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.tasks.text import evenly_spread

MODULES = {
    "calibration": ("ast", "doctest", "mailbox", "optparse", "smtplib", "zipfile"),
    "evaluation": ("argparse", "inspect", "pydoc", "subprocess", "tarfile", "typing"),
}


def code_windows(tokenizer: Any, *, split: str, count: int, tokens: int) -> list[list[int]]:
    """Passages of exactly `tokens` token ids, evenly spread over a split's modules.

    Raises:
        HeadAwareError: unknown split, a module without source, or passages that would overlap.
    """
    if split not in MODULES:
        raise HeadAwareError(f"split must be calibration or evaluation, got {split!r}")
    return evenly_spread(
        tokenizer, "".join(map(_source, MODULES[split])), f"{split} code", count, tokens
    )


def _source(name: str) -> str:
    found = importlib.util.find_spec(name)
    if found is None or not found.has_location or not str(found.origin).endswith(".py"):
        raise HeadAwareError(f"no source of Python's module {name}: nothing to measure code on")
    return Path(str(found.origin)).read_text(encoding="utf-8")
