"""Budgets of a scheduler's requests: who may start, with which windows, and what all still take.

A request gets its windows when it is looked up in the prefix cache, and starts only if the pool can
hold it to the end that is expected of it. Its windows travel to the workers in its sampling
parameters. admission.py calls all this from vLLM's scheduler.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

from vllm_headaware.cache.accounts import Accounts, Claim
from vllm_headaware.cache.admission import BudgetMonitor, Pool
from vllm_headaware.cache.growth import Growth
from vllm_headaware.config.request import WINDOWS_KEY, read_options
from vllm_headaware.plan import Plan
from vllm_headaware.plan.ladder import Ladders
from vllm_headaware.plan.windows import Windows
from vllm_headaware.vllm_compat.carrier import get_limits
from vllm_headaware.vllm_compat.engine_core.request_budget import RequestBudget, salt

logger = logging.getLogger("vllm.headaware")


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
        self.accounts = Accounts(self.pool)
        self.growth = Growth(reserve=get_limits(config).reserve)
        self.evicts = any(c.policy.heavy_hitters is not None for c in plan.classes)
        self.quiet: dict[str, int] = {}
        """Tokens up to which a decoding request takes no block, gives none back, and fills none."""
        self.waits: set[str] = set()
        """Requests that the pool cannot hold to their end now."""
        self.events = self._new_events()
        self._reading: dict[str, Any] = {}
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
        self._settle()
        last = len(own.ladder) - 1
        while True:
            movable = own.pinned is None and not own.started
            if movable:
                own.level = min(monitor.level, last)
            if not len(self.accounts):
                self._fit_alone(request, own, movable)
            self.give(request, own)
            hit = find()
            if not len(self.accounts) or self._holds(request, hit[0].blocks):
                return hit
            if not (movable and own.level < last and self._tighten("a request would have to wait")):
                self.waits.add(request.request_id)
                monitor.calm = 0
                return hit

    def start(self, request: Any, hits: Sequence[Sequence[Any]], num_hit_tokens: int) -> None:
        """A request has got its first blocks, after those of its prefix hits."""
        own = self.budget_of(request)
        if not own.started:
            own.started = True
            started, level = self.events["started"], str(own.level)
            started[level] = started.get(level, 0) + 1
        for manager, c, blocks in zip(self.managers, self.plan.classes, hits, strict=True):
            self.events["prefix_hits"][c.name] += sum(not block.is_null for block in blocks)
            manager.adopted(request.request_id, blocks)
            for other in manager.shared_since:
                self._recount(other)
            manager.shared_since.clear()
        # A class that usually keeps everything adopts a prefix without holes.
        self.manager.coordinator.remove_skipped_blocks(
            request.request_id, num_hit_tokens, request.num_prompt_tokens
        )
        self._open(request)
        own.expected = own.expected or self._expected(request) - request.num_prompt_tokens
        before = self.monitor.level
        if self.monitor.started(self.share_left()):
            self._say(before, "little of the pool is left")

    def grew(self, request: Any, num_tokens: int) -> None:
        """A running request has got blocks for its first num_tokens tokens, or given some back."""
        name = request.request_id
        expected = self.accounts.expected(name)
        if name in self._reading or num_tokens > expected:
            if expected:
                self._open(request)
            return
        # Full blocks enter the prefix cache where all classes have whole ones.
        align = self.scheduler.block_size
        quiet = (min(num_tokens, request.num_tokens) // align + 1) * align - 1
        processed = max(request.num_computed_tokens - request.num_in_flight_tokens, 0)
        own = []
        for manager in self.managers:
            own.append(manager.own_blocks(name))
            until = manager.quiet_until(name, processed)
            if until < quiet:
                quiet = until
        self.accounts.holds(name, own)
        if not self.evicts:
            self.quiet[name] = quiet

    def stop(self, request: Any) -> None:
        """A request has given up all its blocks: it is over, or put back."""
        name = request.request_id
        self.accounts.close(name)
        self.quiet.pop(name, None)
        self._reading.pop(name, None)
        for manager in self.managers:
            manager.forget(name)

    def take_events(self) -> dict[str, dict[str, int]]:
        """Fields of census.Events since the last call."""
        now, before = dict(self.monitor.changes), self._changes_seen
        events, self.events = self.events, self._new_events()
        self._changes_seen = now
        return {**events, "level_changes": {name: now[name] - before[name] for name in now}}

    def _new_events(self) -> dict[str, dict[str, int]]:
        return {
            "started": {},
            "growth": {"expected": 0, "real": 0},
            "prefix_hits": {c.name: 0 for c in self.plan.classes},
        }

    def step(self) -> None:
        """An engine step begins."""
        monitor, level = self.monitor, self.monitor.level
        if level and not self.scheduler.running:
            monitor.reset()
            self._say(level, "nothing is running")
        elif monitor.may_relax() and monitor.relax(self.share_left()):
            self._say(level, "there is room again")

    def share_left(self) -> float:
        """Share of the pool (0 to 1) that is promised to nobody."""
        return self.left() / self.pool.capacity

    def left(self) -> int:
        """Blocks that are promised to nobody."""
        self._settle()
        return max(self.accounts.left(self.block_pool.get_num_free_blocks()), 0)

    def claim(self, request: Any) -> Claim:
        """What a request may take, running or not."""
        settled = request.num_computed_tokens - request.num_in_flight_tokens
        prefill = max(request.num_tokens - 1 - settled, 0)
        if settled >= request.num_prompt_tokens and prefill <= self.pool.steps_in_flight:
            prefill = 0
        return Claim(
            windows=self.windows_of(request),
            expected=self._expected(request),
            most=self.full_tokens(request),
            prefill_tokens=prefill,
            num_prompt=request.num_prompt_tokens if settled < request.num_prompt_tokens else 0,
        )

    def full_tokens(self, request: Any) -> int:
        """Tokens of a request when it has generated all it may."""
        return min(request.num_prompt_tokens + request.max_tokens, self.scheduler.max_model_len)

    def _expected(self, request: Any) -> int:
        most = self.full_tokens(request) - request.num_prompt_tokens
        growth = self.growth.expected(request.num_output_tokens, most)
        return request.num_prompt_tokens + growth

    def _open(self, request: Any) -> None:
        """Put a running request's claim, as it is now, into the accounts."""
        claim, name = self.claim(request), request.request_id
        self.accounts.open(name, claim, [m.own_blocks(name) for m in self.managers])
        if claim.prefill_tokens or claim.num_prompt:
            self._reading[name] = request
            self.quiet.pop(name, None)
        else:
            self._reading.pop(name, None)

    def _recount(self, name: str) -> None:
        self.accounts.holds(name, [manager.own_blocks(name) for manager in self.managers])

    def _settle(self) -> None:
        """Prompts are read a bit further with every step."""
        for request in list(self._reading.values()):
            self._open(request)

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
        salt(request, own, None if plans else windows)

    def forget(self, request: Any) -> None:
        """A request is over."""
        self.waits.discard(request.request_id)
        own = request.__dict__.get("_headaware_budget")
        if own is not None and own.started and request.num_output_tokens:
            self.growth.ended(request.num_output_tokens)
            self.events["growth"]["expected"] += own.expected
            self.events["growth"]["real"] += request.num_output_tokens
        for manager in self.managers:
            manager.own_windows.pop(request.request_id, None)

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

    def _holds(self, request: Any, hits: Sequence[Sequence[Any]]) -> bool:
        claim = self.claim(request)
        # Prefix hits that others hold take nothing, where they never go back.
        shared = [
            0
            if self.pool.bounded(index, claim.windows)
            else sum(block.ref_cnt > 0 for block in blocks)
            for index, blocks in enumerate(hits)
        ]
        free = self.block_pool.get_num_free_blocks()
        return self.accounts.left(free, claim, shared) >= 0 and not self.accounts.overcommitted(
            claim
        )

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
