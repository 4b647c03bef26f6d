"""Does a model that was never trained for it survive group positions and wait-k reading?

It is asked to repeat a passage, which can be done while the passage still arrives.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval.gpe import StreamCache, interleave, target_logprobs, write
from vllm_headaware.eval.lag import average_lagging, length_adaptive_average_lagging, wait_k
from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.profile.run import load_model
from vllm_headaware.tasks.prompts import encode_chat
from vllm_headaware.tasks.text import text_windows

MARK = "=====PASSAGE====="


def evaluate(
    model_dir: Path,
    *,
    waits: Sequence[int] = (4, 8, 16),
    phi: int = 0,
    passages: int = 4,
    tokens: int = 64,
    split: str = "evaluation",
    progress: bool | None = None,
) -> dict[str, Any]:
    """Ordinary positions, group positions with everything read, and group positions with wait-k.

    Args:
        waits: values of k, in tokens of the source; what stands before the passage counts.
        phi: position of the first target token.
        tokens: length of a passage.

    Returns:
        Plain values, one row per way of reading: NLL in nats per token and share of right tokens
        when the right target is given, share of passage tokens written in place when the model
        writes by itself, and the lags of that writing in source tokens.

    Raises:
        HeadAwareError: a k below 1, or a model that cannot be loaded or has windows of its own.
    """
    started = time.monotonic()
    if min(waits, default=1) < 1 or phi < 0:
        raise HeadAwareError(f"wait-k needs k of at least 1 and phi of at least 0, got {waits}")
    model, tokenizer = load_model(model_dir)
    if any(layer_windows(model.config)):
        raise HeadAwareError(
            "the model has layers with a window of their own; group positions are defined without"
        )
    before, after = _frame(tokenizer)
    texts = text_windows(tokenizer, split=split, count=passages, tokens=tokens)
    ways: list[tuple[str, int | None]] = [("ordinary", None), ("group", None)]
    ways += [("group", k) for k in waits]
    rows = []
    bar = tqdm(
        total=len(ways) * len(texts),
        desc="streaming",
        unit="run",
        file=sys.stderr,
        disable=not sys.stderr.isatty() if progress is None else not progress,
    )
    with bar:
        for positions, k in ways:
            got: list[dict[str, float]] = []
            for text in texts:
                source = [*before, *text]
                # Ordinary positions are group positions whose target starts where the source ends.
                own = len(source) if positions == "ordinary" else phi
                wait = len(source) if k is None else len(before) + k
                got.append(_run(model, source, after, text, wait, own))
                bar.update()
            means = {name: fmean(values[name] for values in got) for name in got[0]}
            rows.append({"positions": positions, "wait_k": k, **means})
    return {
        "model": model_dir.resolve().name,
        "split": split,
        "passages": passages,
        "tokens": tokens,
        "phi": phi,
        "rows": rows,
        "seconds": round(time.monotonic() - started, 1),
    }


def _run(
    model: Any,
    source: Sequence[int],
    given: Sequence[int],
    target: Sequence[int],
    wait: int,
    phi: int,
) -> dict[str, float]:
    reads = wait_k(wait, len(source), len(target))
    # What has been read when a target token is written is read before its predecessor is computed.
    ahead = [reads[0]] * len(given) + reads[1:] + [reads[-1]]
    stream = interleave(source, [*given, *target], ahead, phi)
    logprobs = target_logprobs(StreamCache(model).push(stream), stream, len(given))
    wanted = torch.tensor(target)
    written, own_reads = write(model, source, given, wait, phi=phi, limit=2 * len(target))
    in_place = sum(a == b for a, b in zip(written, target, strict=False)) / len(target)
    lags = average_lagging, length_adaptive_average_lagging
    # Whoever writes nothing has waited for everything.
    al, laal = (
        lag(own_reads, len(source), len(target)) if own_reads else len(source) for lag in lags
    )
    return {
        "nll": -float(logprobs.gather(1, wanted[:, None]).mean()),
        "right": float((logprobs.argmax(-1) == wanted).float().mean()),
        "written": in_place,
        "al": al,
        "laal": laal,
    }


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that stand before a passage, and those with which the answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        before = encode_chat(tokenizer, "Repeat the following text word for word.\n\n")
        return before, tokenizer.encode("\n\nText:", add_special_tokens=False)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"Repeat the following text word for word.\n\n{MARK}"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    before, after = text.split(MARK)
    # Something has to stand where the target starts, even if the template has nothing there.
    ids = (tokenizer.encode(part, add_special_tokens=False) for part in (before, after, "Text:"))
    start, end, something = ids
    return start, end or something
