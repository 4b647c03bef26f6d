"""How many heads must keep their history: gates are closed for good, the least important first.

Gate saliency is a first-order guess about one head at a time. Here heads see only sinks and window
together, in the order of the ranking, and what the answers lose is measured, until the loss passes
a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.policies.headaware import rank_heads
from vllm_headaware.profile.probe import (
    full_attention,
    last_logits,
    native_attention,
    sink_window_attention,
    watch_attention,
)
from vllm_headaware.profile.questions import Question

SHARES = (0.0, 0.1, 0.2, 0.35)
"""Shares of open heads that are always measured."""


@torch.no_grad()
def answer_loss(
    model: Any,
    question: Question,
    closed: torch.Tensor,
    sink: int,
    window: int,
) -> float:
    """Mean NLL of an answer, in nats, while some KV heads see only sinks and window.

    Args:
        model: a Hugging Face decoder in eval mode.
        closed: bool [num_layers, num_kv_heads], on the CPU; layers with a window of their own stay
            as they are.
        sink, window: in tokens.
    """
    windows = layer_windows(model.config)

    def ablated(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        if windows[layer] is not None or not closed[layer].any():
            return native_attention(query, key, value, scale, windows[layer])
        output = torch.empty_like(query)
        group = query.shape[1] // key.shape[1]
        for heads, is_open in ((closed[layer], False), (~closed[layer], True)):
            if heads.any():
                own = heads.repeat_interleave(group)
                rows = query[:, own], key[:, heads], value[:, heads], scale
                output[:, own] = (
                    full_attention(*rows)
                    if is_open
                    else sink_window_attention(*rows, sink=sink, window=window)
                )
        return output

    input_ids = question.input_ids.to(model.device)
    with watch_attention(model, ablated):
        logits = last_logits(model, input_ids, question.num_answer_tokens)
    return float(cross_entropy(logits, input_ids[-question.num_answer_tokens :]).cpu())


def ablate(
    model: Any,
    questions: Sequence[Question],
    scores: torch.Tensor,
    sink: int,
    window: int,
    bound: float,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Close heads in order of rank and find the fewest that must stay open.

    Args:
        scores: float32 [num_layers, num_kv_heads]; heads with the highest stay open longest.
        bound: nats per answer token that may be lost, mean over the questions.
        tick: called after each measurement.

    Returns:
        Plain values: `bound`, `samples`, `share` of the heads that keeps the loss within the bound,
        and the `curve`, pairs of a share and the loss there, by share. As everywhere, shares count
        heads that a policy is about: not those of layers with a window of their own.
    """
    full = torch.tensor([window is None for window in layer_windows(model.config)])
    ranks = torch.tensor(rank_heads(scores[full].tolist()))
    total = ranks.numel()
    losses: dict[int, float] = {}

    def loss(num_open: int) -> float:
        """Beyond that with all heads open."""
        if num_open not in losses:
            closed = torch.zeros(scores.shape, dtype=torch.bool)
            closed[full] = ranks >= num_open
            values = [answer_loss(model, asked, closed, sink, window) for asked in questions]
            losses[num_open] = sum(values) / len(values)
            tick()
        return losses[num_open] - losses[total]

    loss(total)
    fewest = fewest_within(lambda n: loss(n) <= bound, [round(s * total) for s in SHARES], total)
    return {
        "bound": bound,
        "samples": len(questions),
        "share": round(fewest / total, 4),
        "curve": [[round(n / total, 4), float(f"{loss(n):.4g}")] for n in sorted(losses)],
    }


def fewest_within(within: Callable[[int], bool], grid: Sequence[int], most: int) -> int:
    """The smallest count from which on all that was asked stays within a bound.

    Args:
        within: whether a count does; asked for every count of the grid, then for those between the
            last that does not and the next that does, by halves.
        grid: counts, rising from 0.
        most: a count that does.
    """
    outside = max((n for n in grid if n < most and not within(n)), default=-1)
    inside = min((n for n in grid if n > outside), default=most)
    while inside - outside > 1:
        middle = (inside + outside) // 2
        if within(middle):
            inside = middle
        else:
            outside = middle
    return inside
