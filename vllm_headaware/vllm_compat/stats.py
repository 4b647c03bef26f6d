"""The census on its way from the scheduler to the front end, inside vLLM's own statistics.

SchedulerStats has no field for plugins. Its kv_connector_stats dictionary travels anyway and is
unused without a KV connector (which the conflict matrix rules out): the scheduler puts the census
in, and the front end takes it out again before vLLM's own loggers look.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from vllm_headaware.vllm_compat.carrier import get_plan, get_profile_checksum
from vllm_headaware.vllm_compat.wrap import wrap

KEY = "vllm_headaware"
INTERVAL_SECONDS = 0.5
"""Least time between two censuses of a busy engine; an idle engine is counted at once."""


def install() -> None:
    """Hook statistics on both sides."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.metrics.loggers import StatLoggerManager

    wrap(Scheduler, "make_stats", _make_stats)
    wrap(Scheduler, "_free_request_blocks", _free_request_blocks)
    wrap(StatLoggerManager, "__init__", _init_loggers)
    wrap(StatLoggerManager, "record", _record)


class SchedulerLedger:
    """What a scheduler has given back so far, and when it was last counted."""

    def __init__(self, scheduler: Any) -> None:
        plan = get_plan(scheduler.vllm_config)
        self.class_names = [c.name for c in plan.classes] if plan else []
        self.freed = {"finished": 0, "preempted": 0}
        self.counted_at = 0.0

    def census(self, scheduler: Any) -> Any:
        from vllm_headaware.cache.census import take_census

        managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        window = sum(getattr(manager, "num_window_freed", 0) for manager in managers)
        return take_census(scheduler, self.class_names, {**self.freed, "window": window})


def ledger_of(scheduler: Any) -> SchedulerLedger | None:
    """The ledger of a scheduler that runs under a plan, else None."""
    ledger = scheduler.__dict__.get("_headaware_ledger")
    if ledger is None:
        ledger = scheduler._headaware_ledger = SchedulerLedger(scheduler)
    return ledger if ledger.class_names else None


def _make_stats(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    stats = original(self, *args, **kwargs)
    ledger = ledger_of(self)
    if stats is None or ledger is None:
        return stats
    now = time.monotonic()
    if now - ledger.counted_at >= INTERVAL_SECONDS or not self.running:
        ledger.counted_at = now
        stats.kv_connector_stats = {KEY: dataclasses.asdict(ledger.census(self))}
    return stats


def _free_request_blocks(original: Any, self: Any, request: Any) -> None:
    ledger = ledger_of(self)
    if ledger is None:
        return original(self, request)
    pool = self.kv_cache_manager.block_pool
    free_before = pool.get_num_free_blocks()
    original(self, request)
    reason = "finished" if request.is_finished() else "preempted"
    ledger.freed[reason] += pool.get_num_free_blocks() - free_before
    return None


def _init_loggers(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    original(self, vllm_config, *args, **kwargs)
    plan = get_plan(vllm_config)
    self._headaware_metrics = None
    if plan is not None:
        from vllm_headaware.metrics import HeadAwareMetrics

        self._headaware_metrics = HeadAwareMetrics(
            plan,
            model_name=vllm_config.model_config.served_model_name,
            profile=get_profile_checksum(vllm_config),
            engines=self.engine_indexes,
        )


def _record(
    original: Any,
    self: Any,
    scheduler_stats: Any,
    iteration_stats: Any,
    mm_cache_stats: Any = None,
    engine_idx: int | None = None,
) -> None:
    metrics = self._headaware_metrics
    if metrics is not None and scheduler_stats is not None and scheduler_stats.kv_connector_stats:
        from vllm_headaware.cache.census import Census

        census = scheduler_stats.kv_connector_stats.pop(KEY, None)
        scheduler_stats.kv_connector_stats = scheduler_stats.kv_connector_stats or None
        if census is not None:
            metrics.update(Census(**census), engine_idx or 0)
    original(
        self,
        scheduler_stats,
        iteration_stats,
        mm_cache_stats=mm_cache_stats,
        engine_idx=engine_idx,
    )
