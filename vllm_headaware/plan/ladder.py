"""The ladder of a request: windows that tighten step by step when memory runs low."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_headaware.config.request import RequestLimits, RequestOptions
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.budget import deal_budget
from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.plan.plan import Plan
from vllm_headaware.plan.windows import Windows, reading_window


class Ladders:
    """The ladder of every request: level 0 is what it asked for, or the plan's own windows."""

    def __init__(self, plan: Plan, limits: RequestLimits) -> None:
        self.plan, self.limits = plan, limits
        self._made: dict[tuple[int | None, bool], list[Windows]] = {}

    @property
    def default(self) -> list[Windows]:
        """The ladder of a request that asks for nothing."""
        return self.of(RequestOptions())

    def of(self, options: RequestOptions) -> list[Windows]:
        """Level 0 and tighter ones. "full" is never tightened.

        Raises:
            HeadAwareError: a budget or level outside the operator's limits.
        """
        key = (options.budget, options.full)
        if key not in self._made:
            if len(self._made) > 1000:
                self._made.clear()
            self._made[key] = self._make(options)
        levels = self._made[key]
        if options.level is not None and options.level >= len(levels):
            raise HeadAwareError(
                f"kv_level must be from 0 to {len(levels) - 1} here, got {options.level}"
            )
        return levels

    def _make(self, options: RequestOptions) -> list[Windows]:
        plan, limits = self.plan, self.limits
        if plan.policy == "h2o" and (options.full or options.budget is not None):
            raise HeadAwareError("requests cannot change the budget on a server with policy 'h2o'")
        if options.full:
            if not limits.full:
                raise HeadAwareError("kv_policy 'full' is not allowed on this server; leave it out")
            return [tuple(c.policy.window if c.policy.exact else None for c in plan.classes)]
        windows = plan.windows
        if options.budget is not None:
            most = limits.budget_max or plan.geometry.max_model_len
            if not limits.budget_min <= options.budget <= most:
                raise HeadAwareError(
                    f"kv_budget must be from {limits.budget_min} to {most} tokens on this server,"
                    f" got {options.budget}"
                )
            windows = deal_budget(plan.classes, options.budget, plan.geometry.max_model_len)
        return make_ladder(plan.classes, windows, limits.floor)


def make_ladder(classes: Sequence[HeadClass], windows: Windows, floor: float) -> list[Windows]:
    """Windows that tighten step by step: the last class's down to its floor, then the next.

    A step halves the window of one class, and is left out where it would free no block. Classes
    that keep everything stay as they are.

    Args:
        windows: level 0.
        floor: share (0 to 1) of a class's window that always stays.

    Returns:
        Level 0 and every tighter level, in order.
    """
    levels = [windows]
    for index in reversed(range(len(classes))):
        widest = windows[index]
        if widest is None or classes[index].policy.exact:
            continue
        least, tried, current = max(math.ceil(widest * floor), 1), widest, widest
        while tried > least:
            tried = max(-(-tried // 2), least)
            if _steady(classes[index], tried) < _steady(classes[index], current):
                current = tried
                last = levels[-1]
                levels.append((*last[:index], tried, *last[index + 1 :]))
    return levels


def readings(classes: Sequence[HeadClass], windows: Windows, num_prompt: int) -> list[Windows]:
    """What a request with these windows may have while its prompt is read, widest first.

    Where the policy names a width there is one answer. Else the prompt is read in full, or by ever
    narrower windows, down to the request's own.
    """

    def at_least(width: int | None) -> Windows:
        return tuple(
            window if c.policy.exact else reading_window(window, width)
            for c, window in zip(classes, windows, strict=True)
        )

    if all(c.policy.prefill_window is not None for c in classes):
        return [tuple(c.reading_window(w) for c, w in zip(classes, windows, strict=True))]
    rungs, width = [at_least(None)], 1 << max(num_prompt - 1, 1).bit_length() - 1
    while rungs[-1] != windows:
        rung = at_least(width)
        if rung != rungs[-1]:
            rungs.append(rung)
        width //= 2
    return rungs


def _steady(head_class: HeadClass, window: int) -> int:
    return head_class.most_blocks(2**31, window)
