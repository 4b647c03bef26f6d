"""Budgets in the scheduler: requests are admitted, given their windows, and watched.

A request gets its windows when it is looked up in the prefix cache, and starts only if the pool can
hold it to its end. Its windows travel to the workers in its sampling parameters.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

from vllm_headaware.cache.admission import BudgetMonitor, Pool, Tenant
from vllm_headaware.config.request import WINDOWS_KEY, read_options
from vllm_headaware.plan import Plan
from vllm_headaware.plan.ladder import Ladders
from vllm_headaware.plan.windows import Windows
from vllm_headaware.vllm_compat.carrier import get_limits, get_plan
from vllm_headaware.vllm_compat.wrap import wrap

logger = logging.getLogger("vllm.headaware")


def install() -> None:
    """Hook the scheduler and its block manager."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler

    wrap(Scheduler, "__init__", _init_scheduler)
    wrap(Scheduler, "_free_request_blocks", _free_request_blocks)
    wrap(KVCacheManager, "new_step_starts", _new_step_starts)
    wrap(KVCacheManager, "get_computed_blocks", _get_computed_blocks)
    wrap(KVCacheManager, "allocate_slots", _allocate_slots)


class RequestBudget:
    """What the scheduler remembers of a request: its ladder, and its place on it."""

    def __init__(self, ladder: list[Windows], pinned: int | None, salt: str | None) -> None:
        self.ladder, self.pinned, self.salt = ladder, pinned, salt
        self.level = pinned or 0
        self.given: Windows | None = None
        self.started = False


class Budgets:
    """Admission and windows of the requests of one scheduler."""

    def __init__(self, scheduler: Any, plan: Plan) -> None:
        config = scheduler.vllm_config
        self.scheduler, self.plan = scheduler, plan
        self.manager = scheduler.kv_cache_manager
        self.block_pool = self.manager.block_pool
        self.managers: Sequence[Any] = self.manager.coordinator.single_type_managers
        self.ladders = Ladders(plan, get_limits(config))
        self.monitor = BudgetMonitor(len(self.ladders.default))
        batch = config.scheduler_config.max_num_batched_tokens
        self.pool = Pool(
            plan.classes,
            self.block_pool.num_gpu_blocks - 1,
            config.max_in_flight_tokens,
            -(-config.max_in_flight_tokens // batch),
        )
        self.waits: set[str] = set()
        """Requests that the pool cannot hold to their end now."""
        self.started: dict[str, int] = {}
        """Requests that started since take_events, by level."""
        self._changes_seen = dict(self.monitor.changes)

    def budget_of(self, request: Any) -> RequestBudget:
        """A request's place on its ladder, which is its for life."""
        own = request.__dict__.get("_headaware_budget")
        if own is None:
            params = request.sampling_params
            options = read_options(params.extra_args if params else None, self.plan.policy)
            ladder = self.ladders.of(options)
            own = RequestBudget(ladder, options.level, request.cache_salt)
            request._headaware_budget = own
        return own

    def windows_of(self, request: Any) -> Windows:
        """What each class keeps of a request."""
        return self.budget_of(request).given or self.plan.windows

    def look_up(self, request: Any, find: Callable[[], Any]) -> Any:
        """Prefix hits of a request that wants to start, at the level it would start at."""
        own, monitor = self.budget_of(request), self.monitor
        self.waits.discard(request.request_id)
        last = len(own.ladder) - 1
        tenants = [self.tenant(r) for r in self.scheduler.running]
        while True:
            movable = own.pinned is None and not own.started
            if movable:
                own.level = min(monitor.level, last)
            if not tenants:
                self._fit_alone(request, own, movable)
            self.give(request, own)
            hit = find()
            if not tenants or self._holds(request, hit[0].blocks, tenants):
                return hit
            if not (movable and own.level < last and self._tighten("a request would have to wait")):
                self.waits.add(request.request_id)
                monitor.calm = 0
                return hit

    def start(self, request: Any, num_hit_tokens: int) -> None:
        """A request has got its first blocks."""
        own = self.budget_of(request)
        if not own.started:
            own.started = True
            self.started[str(own.level)] = self.started.get(str(own.level), 0) + 1
        # A class that usually keeps everything adopts a prefix without holes.
        self.manager.coordinator.remove_skipped_blocks(
            request.request_id, num_hit_tokens, request.num_prompt_tokens
        )
        tenants = [self.tenant(r) for r in (*self.scheduler.running, request)]
        level = self.monitor.level
        if self.monitor.started(self.share_left(tenants)):
            self._say(level, "little of the pool is left")

    def take_events(self) -> tuple[dict[str, int], dict[str, int]]:
        """level_changes and started since the last call; see census.Events."""
        changes, seen = dict(self.monitor.changes), self._changes_seen
        self._changes_seen = changes
        started, self.started = self.started, {}
        return {name: count - seen[name] for name, count in changes.items()}, started

    def step(self) -> None:
        """An engine step begins."""
        monitor, level = self.monitor, self.monitor.level
        if level and not self.scheduler.running:
            monitor.reset()
            self._say(level, "nothing is running")
        elif monitor.may_relax() and monitor.relax(self.share_left()):
            self._say(level, "there is room again")

    def share_left(self, tenants: Sequence[Tenant] | None = None) -> float:
        """Share of the pool (0 to 1) that is promised to nobody."""
        return self.left(tenants) / self.pool.capacity

    def left(self, tenants: Sequence[Tenant] | None = None) -> int:
        """Blocks that are promised to nobody."""
        if tenants is None:
            tenants = [self.tenant(r) for r in self.scheduler.running]
        return max(self.pool.left(self.block_pool.get_num_free_blocks(), tenants), 0)

    def tenant(self, request: Any, hits: Sequence[Any] | None = None) -> Tenant:
        """A running request; or with hits one that wants to start."""
        settled = request.num_computed_tokens - request.num_in_flight_tokens
        prefill = max(request.num_tokens - 1 - settled, 0)
        if settled >= request.num_prompt_tokens and prefill <= self.pool.steps_in_flight:
            prefill = 0
        return Tenant(
            windows=self.windows_of(request),
            full_tokens=self.full_tokens(request),
            blocks=hits or [m.req_to_blocks.get(request.request_id, ()) for m in self.managers],
            prefill_tokens=prefill,
            num_prompt=request.num_prompt_tokens if settled < request.num_prompt_tokens else 0,
        )

    def full_tokens(self, request: Any) -> int:
        """Tokens of a request when it has generated all it may."""
        return min(request.num_prompt_tokens + request.max_tokens, self.scheduler.max_model_len)

    def give(self, request: Any, own: RequestBudget) -> None:
        """Make the windows of a request's level its own: in the managers, in the salt of its prefix
        and, for the workers, in its sampling parameters."""
        windows = own.ladder[own.level]
        if own.given == windows:
            return
        own.given = windows
        plans = windows == self.plan.windows
        for manager, window in zip(self.managers, windows, strict=True):
            if plans:
                manager.own_windows.pop(request.request_id, None)
            else:
                manager.own_windows[request.request_id] = window
        if plans and WINDOWS_KEY not in (request.sampling_params.extra_args or {}):
            return
        tokens = [window or 0 for window in windows]
        # Siblings of a request with n > 1 may share the object.
        request.sampling_params = copy.copy(request.sampling_params)
        extra = {**(request.sampling_params.extra_args or {}), WINDOWS_KEY: tokens}
        request.sampling_params.extra_args = extra
        self._salt(request, own, None if plans else windows)

    def forget(self, request: Any) -> None:
        """A request is over."""
        self.waits.discard(request.request_id)
        for manager in self.managers:
            manager.own_windows.pop(request.request_id, None)

    def _salt(self, request: Any, own: RequestBudget, windows: Windows | None) -> None:
        from vllm_headaware.cache.managers import BlockHashes

        request.cache_salt = f"{own.salt or ''}|{WINDOWS_KEY}={windows}" if windows else own.salt
        request.block_hashes = BlockHashes(windows) if windows else []
        request.update_block_hashes()

    def _fit_alone(self, request: Any, own: RequestBudget, movable: bool) -> None:
        """With the pool to itself, a request takes the first level that fits."""
        while (
            movable
            and own.level < len(own.ladder) - 1
            and not self.pool.fits_alone(
                own.ladder[own.level], self.full_tokens(request), request.num_prompt_tokens
            )
        ):
            own.level += 1

    def _holds(self, request: Any, hits: Sequence[Any], tenants: Sequence[Tenant]) -> bool:
        wanted = self.tenant(request, hits)
        return self.pool.left(self.block_pool.get_num_free_blocks(), tenants, wanted) >= 0

    def _tighten(self, why: str) -> bool:
        level = self.monitor.level
        tightened = self.monitor.tighten()
        if tightened:
            self._say(level, why)
        return tightened

    def _say(self, before: int, why: str) -> None:
        monitor = self.monitor
        windows = ", ".join(
            f"{c.name} {'everything' if window is None else window}"
            for c, window in zip(
                self.plan.classes, self.ladders.default[monitor.level], strict=True
            )
        )
        logger.info(
            "KV budgets %s to level %d of %d: %s. New requests keep: %s",
            "tighten" if monitor.level > before else "relax",
            monitor.level,
            monitor.depth - 1,
            why,
            windows,
        )


def budgets_of(scheduler: Any) -> Budgets | None:
    """The budgets of a scheduler that runs under a plan, else None."""
    return scheduler.__dict__.get("_headaware_budgets")


def _init_scheduler(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    plan = get_plan(self.vllm_config)
    if plan is not None:
        self._headaware_budgets = Budgets(self, plan)
        self.kv_cache_manager._headaware_budgets = self._headaware_budgets


def _free_request_blocks(original: Any, self: Any, request: Any) -> None:
    original(self, request)
    budgets = budgets_of(self)
    if budgets is not None and request.is_finished():
        budgets.forget(request)


def _new_step_starts(original: Any, self: Any) -> None:
    original(self)
    budgets = self.__dict__.get("_headaware_budgets")
    if budgets is not None:
        budgets.step()


def _get_computed_blocks(original: Any, self: Any, request: Any) -> Any:
    budgets = self.__dict__.get("_headaware_budgets")
    if budgets is None:
        return original(self, request)
    return budgets.look_up(request, lambda: original(self, request))


def _allocate_slots(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    budgets = self.__dict__.get("_headaware_budgets")
    # Only a request that is not running brings what the prefix cache has for it.
    if budgets is None or "new_computed_blocks" not in kwargs:
        return original(self, request, *args, **kwargs)
    if request.request_id in budgets.waits:
        return None
    slots = original(self, request, *args, **kwargs)
    if slots is not None:
        budgets.start(request, kwargs.get("num_new_computed_tokens", 0))
    return slots
