"""Admission in vLLM's scheduler: the hooks through which it asks budgets.py.

A decoding request that neither takes, gives back nor fills a block in a step costs one look-up.
"""

from __future__ import annotations

from typing import Any

from vllm_headaware.vllm_compat.carrier import MOVES, WINDOWS, get_plan
from vllm_headaware.vllm_compat.engine_core.budgets import Budgets
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook the scheduler and its block manager."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler

    wrap(Scheduler, "__init__", _init_scheduler)
    wrap(Scheduler, "schedule", _schedule)
    wrap(Scheduler, "_free_request_blocks", _free_request_blocks)
    wrap(KVCacheManager, "new_step_starts", _new_step_starts)
    wrap(KVCacheManager, "get_computed_blocks", _get_computed_blocks)
    wrap(KVCacheManager, "allocate_slots", _allocate_slots)


def budgets_of(scheduler: Any) -> Budgets | None:
    """The budgets of a scheduler that runs under a plan, else None."""
    return scheduler.__dict__.get("_headaware_budgets")


def _init_scheduler(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    plan = get_plan(self.vllm_config)
    if plan is not None:
        self._headaware_budgets = Budgets(self, plan)
        self.kv_cache_manager._headaware_budgets = self._headaware_budgets


def _schedule(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(self, *args, **kwargs)
    budgets = budgets_of(self)
    if budgets is not None:
        setattr(output, WINDOWS, budgets.take_changed(output.num_scheduled_tokens))
        if budgets.compactions:
            setattr(output, MOVES, budgets.compactions.take(output.num_scheduled_tokens))
    return output


def _free_request_blocks(original: Any, self: Any, request: Any) -> None:
    original(self, request)
    budgets = budgets_of(self)
    if budgets is not None:
        budgets.stop(request)
        if request.is_finished():
            budgets.forget(request)


def _new_step_starts(original: Any, self: Any) -> None:
    original(self)
    budgets = self.__dict__.get("_headaware_budgets")
    if budgets is not None:
        budgets.step()


def _get_computed_blocks(original: Any, self: Any, request: Any, *args: Any) -> Any:
    budgets = self.__dict__.get("_headaware_budgets")
    if budgets is None:
        return original(self, request, *args)
    hit = budgets.starts.look_up(request, lambda: original(self, request, *args))
    if hit is None:
        request.block_hashes = []
        return original(self, request, *args)
    return hit


def _allocate_slots(
    original: Any, self: Any, request: Any, num_new_tokens: int, *args: Any, **kwargs: Any
) -> Any:
    budgets = self.__dict__.get("_headaware_budgets")
    if budgets is None:
        return original(self, request, num_new_tokens, *args, **kwargs)
    hits = kwargs.get("new_computed_blocks")
    if hits is None:
        total = request.num_computed_tokens + num_new_tokens
        running = budgets.running.get(request.request_id)
        if budgets.compactions and running is not None and running.compacts:
            budgets.compactions.consider(running)
        if running is not None and total <= running.quiet:
            return self.empty_kv_cache_blocks
        slots = budgets.allocate(lambda: original(self, request, num_new_tokens, *args, **kwargs))
        if running is not None:
            budgets.grew(running, total)
        return slots
    if request.request_id in budgets.starts.waits:
        return None
    slots = budgets.allocate(
        lambda: original(self, request, num_new_tokens, *args, **kwargs), starts=True
    )
    if slots is not None:
        budgets.start(request, hits.blocks, kwargs.get("num_new_computed_tokens", 0))
    return slots
