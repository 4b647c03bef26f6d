"""Budgets of a scheduler's requests: who may start, with which windows, and what all still take.

starts.py says who may start, squeezes.py takes from running requests what they hold beyond their
windows. admission.py calls all this from vLLM's scheduler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from vllm_headaware.cache.accounts import Accounts, Claim
from vllm_headaware.cache.admission import BudgetMonitor, Pool
from vllm_headaware.cache.growth import Growth
from vllm_headaware.config.request import read_options
from vllm_headaware.plan import Plan
from vllm_headaware.plan.ladder import Ladders
from vllm_headaware.plan.windows import Windows, in_tokens
from vllm_headaware.vllm_compat.carrier import get_limits
from vllm_headaware.vllm_compat.engine_core.compactions import make_compactions
from vllm_headaware.vllm_compat.engine_core.request_budget import (
    RequestBudget,
    Running,
    settled,
)
from vllm_headaware.vllm_compat.engine_core.squeezes import Squeezes
from vllm_headaware.vllm_compat.engine_core.starts import Starts

logger = logging.getLogger("vllm.headaware")


class Budgets:
    """Admission and windows of the requests of one scheduler."""

    def __init__(self, scheduler: Any, plan: Plan) -> None:
        config, limits = scheduler.vllm_config, get_limits(scheduler.vllm_config)
        self.scheduler, self.plan = scheduler, plan
        self.manager = scheduler.kv_cache_manager
        self.block_pool = self.manager.block_pool
        self.managers: Sequence[Any] = self.manager.coordinator.single_type_managers
        self.ladders = Ladders(plan, limits)
        self.monitor = BudgetMonitor(len(self.ladders.default))
        batch = config.scheduler_config.max_num_batched_tokens
        self.pool = Pool(
            plan.classes,
            self.block_pool.num_gpu_blocks - 1,
            config.max_in_flight_tokens,
            -(-config.max_in_flight_tokens // batch),
        )
        self.accounts = Accounts(self.pool, limits.elastic)
        self.align = scheduler.block_size
        self.finest = min(c.block_tokens for c in plan.classes)
        self.growth = Growth(reserve=limits.reserve)
        self.squeezes = Squeezes(self) if limits.elastic else None
        self.evicts = any(c.policy.heavy_hitters is not None for c in plan.classes)
        self.compactions = make_compactions(self)
        self.running: dict[str, Running] = {}
        self.turn = 0
        """Goes up when a request starts, has read its prompt, or ends, and when levels change."""
        self.changed: dict[str, tuple[list[int], list[int], int]] = {}
        """Windows that workers do not know yet; see carrier.WINDOWS."""
        self.events = self._new_events()
        self._reading: dict[str, Any] = {}
        self._changes_seen = dict(self.monitor.changes)
        self.starts = Starts(self)

    def budget_of(self, request: Any) -> RequestBudget:
        """A request's place on its ladder, and the windows it has had."""
        own = request.__dict__.get("_headaware_budget")
        if own is None:
            params = request.sampling_params
            options = read_options(params.extra_args if params else None, self.plan.policy)
            own = RequestBudget(self.ladders.of(options), options.level, options.full)
            request._headaware_budget = own
        return own

    def start(self, request: Any, hits: Sequence[Sequence[Any]], num_hit_tokens: int) -> None:
        """A request has got its first blocks, after those of its prefix hits."""
        own, name = self.budget_of(request), request.request_id
        if own.started_at is None:
            own.started_at = own.level
            started, level = self.events["started"], str(own.level)
            started[level] = started.get(level, 0) + 1
        self.starts.started(request)
        self.tell(request)
        for manager, c, blocks in zip(self.managers, self.plan.classes, hits, strict=True):
            self.events["prefix_hits"][c.name] += sum(not block.is_null for block in blocks)
            manager.adopted(name, blocks)
            for other in manager.shared_since:
                self.recount(other)
            manager.shared_since.clear()
        # A class that usually keeps everything adopts a prefix without holes.
        self.manager.coordinator.remove_skipped_blocks(
            name, num_hit_tokens, request.num_prompt_tokens
        )
        regimes: Any = own.regimes
        classes = [manager.at_hand(name) for manager in self.managers]
        self.running[name] = Running(request, regimes, classes)
        self.open(request)
        self.turn += 1
        own.expected = own.expected or self._expected(request) - request.num_prompt_tokens
        before = self.monitor.level
        if self.monitor.started(self.share_left()):
            self._say(before, "little of the pool is left")

    def tell(self, request: Any) -> None:
        """Leave a request's windows to its worker: they hold from its next query on."""
        regimes: Any = self.budget_of(request).regimes
        self.changed[request.request_id] = (
            in_tokens(regimes.windows),
            in_tokens(regimes.reading),
            request.num_prompt_tokens,
        )

    def take_changed(self, scheduled: Any) -> dict[str, tuple[list[int], list[int], int]]:
        """Windows that the workers of a step's requests do not know yet."""
        if not self.changed:
            return {}
        return {name: self.changed.pop(name) for name in [*self.changed] if name in scheduled}

    def allocate(self, slots: Callable[[], Any], starts: bool = False) -> Any:
        """Blocks for a request, squeezed out of others if there are too few; None: too few still.

        Args:
            slots: asks vLLM for them.
            starts: whether the request can wait.
        """
        got = slots()
        if got is not None or self.squeezes is None:
            return got
        while got is None and self.squeezes.make_room():
            got = slots()
        self.events["avoided"]["preemptions"] += got is not None and not starts
        return got

    def grew(self, running: Running, num_tokens: int) -> None:
        """A running request has got blocks for its first num_tokens tokens, or given some back."""
        request = running.request
        expected = running.account.claim.expected
        if request.request_id in self._reading or num_tokens > expected:
            self.open(request)
            return
        self.accounts.holds(running.account, running.own())
        if num_tokens % self.finest == 0:
            return  # the next token takes a block
        processed = settled(request)
        if not self.evicts and running.regimes.changes[-1][0] <= processed:
            # Full blocks enter the prefix cache where all classes have whole ones.
            align = self.align
            filled = (min(num_tokens, request.num_tokens) // align + 1) * align - 1
            running.quiet = running.quiet_until(processed, filled)

    def stop(self, request: Any) -> None:
        """A request has given up all its blocks: it is over, or put back."""
        name = request.request_id
        self.accounts.close(name)
        self.turn += 1
        for known in (self.running, self.changed, self._reading):
            known.pop(name, None)
        self.budget_of(request).compacted.clear()
        if self.compactions:
            self.compactions.forget(name)
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
            "squeezed": {"surplus": 0, "floor": 0, "compacted": 0},
            "avoided": {"preemptions": 0},
        }

    def step(self) -> None:
        """An engine step begins."""
        monitor, level = self.monitor, self.monitor.level
        if level and not self.scheduler.running:
            monitor.reset()
            self._say(level, "nothing is running")
        elif monitor.may_relax() and monitor.relax(self.share_left()):
            self._say(level, "there is room again")
        if self.squeezes:
            self.squeezes.look_ahead()

    def share_left(self) -> float:
        """Share of the pool (0 to 1) that is promised to nobody."""
        return self.left() / self.pool.capacity

    def left(self) -> int:
        """Blocks that are promised to nobody, or 0."""
        self.settle()
        return max(self.room(), 0)

    def room(self) -> int:
        """Blocks that are promised to nobody; negative when more is promised than there is."""
        return self.accounts.left(self.block_pool.get_num_free_blocks())

    def claim(self, request: Any, reading: Windows | None = None) -> Claim:
        """What a request may take, running or not.

        Args:
            reading: its windows while its prompt is read; None: those it has.
        """
        own = self.budget_of(request)
        if reading is None:
            reading = own.regimes.reading if own.regimes else own.windows
        done = settled(request)
        prefill = max(request.num_tokens - 1 - done, 0)
        if done >= request.num_prompt_tokens and prefill <= self.pool.steps_in_flight:
            prefill = 0
        return Claim(
            windows=own.windows,
            reading=reading,
            expected=self._expected(request),
            most=self.full_tokens(request),
            prefill_tokens=prefill,
            num_prompt=request.num_prompt_tokens if done < request.num_prompt_tokens else 0,
        )

    def full_tokens(self, request: Any) -> int:
        """Tokens of a request when it has generated all it may."""
        return min(request.num_prompt_tokens + request.max_tokens, self.scheduler.max_model_len)

    def _expected(self, request: Any) -> int:
        most = self.full_tokens(request) - request.num_prompt_tokens
        growth = self.growth.expected(request.num_output_tokens, most)
        return request.num_prompt_tokens + growth

    def open(self, request: Any) -> None:
        """Put a running request's claim, as it is now, into the accounts."""
        claim, name = self.claim(request), request.request_id
        running = self.running[name]
        running.account = self.accounts.open(name, claim, running.own())
        running.quiet = 0
        if claim.prefill_tokens or claim.num_prompt:
            self._reading[name] = request
        elif self._reading.pop(name, None):
            self.turn += 1

    def recount(self, name: str) -> None:
        """Blocks of a request have changed hands."""
        running = self.running.get(name)
        if running is not None:
            self.accounts.holds(running.account, running.own())

    def settle(self) -> None:
        """Prompts are read a bit further with every step."""
        for request in list(self._reading.values()):
            self.open(request)

    def forget(self, request: Any) -> None:
        """A request is over."""
        self.starts.forget(request)
        own = request.__dict__.get("_headaware_budget")
        if own is not None and own.started_at is not None and request.num_output_tokens:
            self.growth.ended(request.num_output_tokens)
            self.events["growth"]["expected"] += own.expected
            self.events["growth"]["real"] += request.num_output_tokens

    def tighten(self, why: str) -> bool:
        """One level up the ladder; False at its end."""
        level = self.monitor.level
        tightened = self.monitor.tighten()
        if tightened:
            self._say(level, why)
            if self.squeezes:
                self.squeezes.follow(self.monitor.level)
        return tightened

    def _say(self, before: int, why: str) -> None:
        self.turn += 1
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
