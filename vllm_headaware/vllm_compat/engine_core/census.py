"""The census leaves the scheduler inside vLLM's own statistics.

SchedulerStats has no field for plugins. Its kv_connector_stats dictionary travels anyway and is
unused without a KV connector (which the conflict matrix rules out): the scheduler puts the census
in, and the front end takes it out again before vLLM's own loggers look.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from vllm_headaware.cache.census import Events, holding_of, take_census
from vllm_headaware.plan import Plan
from vllm_headaware.vllm_compat.carrier import KEY, get_plan
from vllm_headaware.vllm_compat.engine_core.admission import budgets_of
from vllm_headaware.vllm_compat.wrap import wrap

INTERVAL_SECONDS = 0.5
"""Least time between two censuses of a busy engine; an idle engine is counted at once."""
COST_SHARE = 0.01
"""Most of a busy scheduler's time that censuses may take; with many blocks they become rarer."""


def install() -> None:
    """Hook statistics."""
    from vllm.v1.core.sched.scheduler import Scheduler

    wrap(Scheduler, "make_stats", _make_stats)
    wrap(Scheduler, "_free_request_blocks", _free_request_blocks)


class SchedulerLedger:
    """What happened in a scheduler since its last census, and when that was."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.next_census_at = 0.0
        self.window_freed = 0
        self.new_events = lambda: Events(
            freed={"window": 0, "finished": 0, "preempted": 0},
        )
        self.events = self.new_events()

    def census(self, scheduler: Any) -> Any:
        """Count, and start the events anew."""
        managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        window = sum(getattr(manager, "num_window_freed", 0) for manager in managers)
        events, self.events = self.events, self.new_events()
        events.freed["window"] = window - self.window_freed
        self.window_freed = window
        budgets = budgets_of(scheduler)
        if budgets is not None:
            for name, happened in budgets.take_events().items():
                setattr(events, name, happened)
        return take_census(scheduler, self.plan, events, budgets)

    def gives_back(self, scheduler: Any, request: Any) -> None:
        """A request is about to give up its blocks; those that others share stay."""
        managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        own = [
            block
            for manager in managers
            for block in manager.req_to_blocks.get(request.request_id, ())
            if not block.is_null
        ]
        reason = "finished" if request.is_finished() else "preempted"
        self.events.freed[reason] += sum(block.ref_cnt == 1 for block in own)
        if own and reason == "finished":
            holding = holding_of(scheduler, self.plan, request, budgets_of(scheduler))
            self.events.finished.append(dataclasses.replace(holding, request_id=""))


def ledger_of(scheduler: Any) -> SchedulerLedger | None:
    """The ledger of a scheduler that runs under a plan, else None."""
    if "_headaware_ledger" not in scheduler.__dict__:
        plan = get_plan(scheduler.vllm_config)
        scheduler._headaware_ledger = SchedulerLedger(plan) if plan else None
    return scheduler._headaware_ledger


def _make_stats(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    stats = original(self, *args, **kwargs)
    ledger = ledger_of(self)
    if stats is None or ledger is None:
        return stats
    start = time.monotonic()
    if start >= ledger.next_census_at or not self.running:
        stats.kv_connector_stats = {KEY: dataclasses.asdict(ledger.census(self))}
        cost = time.monotonic() - start
        ledger.next_census_at = start + max(INTERVAL_SECONDS, cost / COST_SHARE)
    return stats


def _free_request_blocks(original: Any, self: Any, request: Any) -> None:
    ledger = ledger_of(self)
    if ledger is not None and self.log_stats:
        ledger.gives_back(self, request)
    original(self, request)
