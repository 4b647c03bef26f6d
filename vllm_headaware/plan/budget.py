"""Budgets in tokens become windows of head classes.

A budget is the mean number of tokens a KV head holds of a long request; classes get it in the
proportion of WEIGHTS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.plan.windows import Windows
from vllm_headaware.policies.base import HeadPolicy

WEIGHTS = {"retrieval": 1.0, "induction": 0.36, "local": 0.16}
"""Shares of a budget by class, relative to each other; a class that is not listed counts 1."""


def held_tokens(head_class: HeadClass, window: int | None, longest: int) -> int:
    """Tokens a KV head holds of a decoding request of `longest` tokens: sinks, window and what
    rounding to blocks adds on average."""
    if window is None and head_class.policy.heavy_hitters is None:
        return longest
    block = head_class.block_tokens
    if window is None:
        return min(head_class.heavy_hitter_blocks * block, longest)
    return min(head_class.sink_blocks * block + window + block - 1, longest)


def mean_tokens(classes: Sequence[HeadClass], windows: Windows, longest: int) -> float:
    """held_tokens, mean over the KV heads that a policy deals to classes."""
    dealt = [(c, w) for c, w in zip(classes, windows, strict=True) if not c.policy.exact]
    held = sum(c.num_heads * held_tokens(c, window, longest) for c, window in dealt)
    return held / sum(c.num_heads for c, _ in dealt)


def deal_budget(classes: Sequence[HeadClass], budget: int, longest: int) -> Windows:
    """The widest windows, in the proportion of WEIGHTS, whose mean_tokens stay within a budget.

    Args:
        classes: with their sinks, block sizes and head counts; their windows are not read.
        budget: tokens, mean over KV heads.
        longest: tokens of the longest request; a class whose part reaches it keeps everything.

    Raises:
        HeadAwareError: sinks and one block for every head already take more than the budget.
    """

    def windows(part: int) -> Windows:
        return tuple(
            c.policy.window
            if c.policy.exact
            else _window(c, int(part * WEIGHTS.get(c.name, 1.0)), longest)
            for c in classes
        )

    least = mean_tokens(classes, windows(0), longest)
    if least > budget:
        raise HeadAwareError(
            f"a KV budget of {budget} tokens is less than the {math.ceil(least)} that sinks and one"
            " block take; use a larger budget or a smaller --kv-sink"
        )
    low, high = 0, math.ceil(longest / min(WEIGHTS.values())) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if mean_tokens(classes, windows(middle), longest) <= budget:
            low = middle
        else:
            high = middle
    return windows(low)


def rough_windows(
    policies: Sequence[HeadPolicy], num_heads: Sequence[int], budget: int, longest: int
) -> Windows:
    """About what deal_budget will give, before block sizes are known."""
    weights = [WEIGHTS.get(policy.name, 1.0) for policy in policies]
    num_heads = [0 if p.exact else n for p, n in zip(policies, num_heads, strict=True)]
    weighted = sum(heads * weight for heads, weight in zip(num_heads, weights, strict=True))
    part = budget * sum(num_heads) / weighted
    kept = [
        int(part * weight) - policy.sink for policy, weight in zip(policies, weights, strict=True)
    ]
    return tuple(None if tokens >= longest else max(tokens, 1) for tokens in kept)


def _window(head_class: HeadClass, kept: int, longest: int) -> int | None:
    """The window with which a head holds `kept` tokens."""
    if kept >= longest:
        return None
    block = head_class.block_tokens
    return max(kept - head_class.sink_blocks * block - block + 1, 1)
