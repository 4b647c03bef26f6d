"""Eviction by score in vLLM: mass goes from workers to the scheduler, evictions come back.

Both travel as attributes of objects that travel anyway: the mass of a step on ModelRunnerOutput,
the evicted blocks of its requests on SchedulerOutput. Nobody waits for either: what a step measured
is acted on when its output is processed, and the step scheduled next runs without what was evicted.
"""

from __future__ import annotations

from typing import Any

from vllm_headaware.cache.heavy_hitters import HeavyHitters
from vllm_headaware.vllm_compat.carrier import EVICTED, MASS, get_plan
from vllm_headaware.vllm_compat.engine_core.request_budget import settled
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook the scheduler's two ends."""
    from vllm.v1.core.sched.scheduler import Scheduler

    wrap(Scheduler, "__init__", _init_scheduler)
    wrap(Scheduler, "schedule", _schedule)
    wrap(Scheduler, "update_from_output", _update_from_output)
    wrap(Scheduler, "_free_request_blocks", _free_request_blocks)


def _init_scheduler(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    plan = get_plan(self.vllm_config)
    heavy = [c for c in plan.classes if c.policy.heavy_hitters is not None] if plan else []
    if heavy:
        self._headaware_heavy = HeavyHitters(heavy[0].heavy_hitter_blocks, heavy[0].sink_blocks)


def _heavy_of(scheduler: Any) -> HeavyHitters | None:
    return scheduler.__dict__.get("_headaware_heavy")


def _schedule(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(self, *args, **kwargs)
    heavy = _heavy_of(self)
    if heavy is not None:
        gone = {name: heavy.evicted(name) for name in output.num_scheduled_tokens}
        setattr(output, EVICTED, {name: places for name, places in gone.items() if places})
    return output


def _update_from_output(
    original: Any, self: Any, scheduler_output: Any, model_runner_output: Any
) -> Any:
    result = original(self, scheduler_output, model_runner_output)
    heavy = _heavy_of(self)
    if heavy is not None:
        (manager,) = self.kv_cache_manager.coordinator.single_type_managers
        for name, mass in (getattr(model_runner_output, MASS, None) or {}).items():
            request = self.requests.get(name)
            # A request that was put back and started anew is not the one that was measured.
            if request is None or request not in self.running or request.num_stale_output_tokens:
                continue
            heavy.add(name, mass)
            places = heavy.evict(name, -(-settled(request) // manager.block_size))
            if places:
                manager.evict(name, places)
    return result


def _free_request_blocks(original: Any, self: Any, request: Any) -> None:
    original(self, request)
    heavy = _heavy_of(self)
    if heavy is not None:
        heavy.forget(request.request_id)
