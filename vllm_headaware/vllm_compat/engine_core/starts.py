"""Which request may start, read by which windows, and after which prefix.

A request gets its windows when it is looked up in the prefix cache, and starts only if the pool can
hold it to the end that is expected of it. While its prompt is read they are as wide as the pool can
hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vllm_headaware.cache.accounts import Claim
from vllm_headaware.cache.regimes import Regimes
from vllm_headaware.plan.ladder import readings
from vllm_headaware.plan.windows import Windows
from vllm_headaware.vllm_compat.engine_core.prefixes import Prefix, Prefixes
from vllm_headaware.vllm_compat.engine_core.request_budget import RequestBudget


class Wait(NamedTuple):
    """Why to look again: until then a look-up would find what the last one found.

    Attributes:
        turn: of the budgets; see Budgets.turn.
        room: blocks promised to nobody with which the request may start.
    """

    turn: int
    room: int


class Starts:
    """Starts of one scheduler's requests.

    Args:
        budgets: of the same scheduler.

    Attributes:
        waits: requests that the pool cannot hold to their end now, each with what would have to
            change; see Wait.
    """

    def __init__(self, budgets: Any) -> None:
        self.budgets = budgets
        self.classes = budgets.plan.classes
        self.prefixes = Prefixes(self.classes, budgets.block_pool.hash_block_size)
        self.waits: dict[str, Wait] = {}
        self._found: dict[str, Prefix] = {}

    def look_up(self, request: Any, find: Callable[[], Any]) -> Any:
        """Prefix hits of a request that wants to start, at the level it would start at; None where
        it has to wait."""
        budgets = self.budgets
        own, monitor = budgets.budget_of(request), budgets.monitor
        budgets.settle()
        wait = self.waits.pop(request.request_id, None)
        if wait and wait.turn == budgets.turn and budgets.room() < wait.room:
            return self._wait(request, wait)
        while True:
            if own.movable:
                own.level = min(monitor.level, len(own.ladder) - 1)
            found = self._widest(request, own, find)
            if isinstance(found, Prefix):
                self._give(request, own, found)
                return found.hit
            lower = own.movable and own.level < len(own.ladder) - 1
            if not (lower and budgets.tighten("a request would have to wait")):
                return self._wait(request, Wait(budgets.turn, budgets.room() + found))

    def started(self, request: Any) -> None:
        """A request has got its first blocks."""
        self.prefixes.started(self._found.pop(request.request_id))

    def forget(self, request: Any) -> None:
        """A request is over."""
        self.waits.pop(request.request_id, None)
        self._found.pop(request.request_id, None)

    def _wait(self, request: Any, wait: Wait) -> None:
        self.waits[request.request_id] = wait
        self.budgets.monitor.calm = 0

    def _widest(self, request: Any, own: RequestBudget, find: Callable[[], Any]) -> Prefix | int:
        """What there is of a request, read by the widest windows that the pool can hold; if it can
        hold none, how many blocks are missing at least."""
        rungs = readings(self.classes, own.windows, request.num_prompt_tokens)
        if not len(self.budgets.accounts):
            reading = self._fit_alone(request, own, rungs)
            return self.prefixes.look_up(request, reading, own.windows, find)
        lacks = []
        for reading in rungs:
            claim = self.budgets.claim(request, reading)
            # As if all of the prompt were shared, where it can be: a bound that takes no look-up.
            lack = self._lack(claim, [claim.expected // c.block_tokens for c in self.classes])
            if lack <= 0:
                prefix = self.prefixes.look_up(request, reading, own.windows, find)
                lack = self._lack(claim, [_held(blocks) for blocks in prefix.hit[0].blocks])
                if lack <= 0:
                    return prefix
            lacks.append(lack)
        return min(lacks)

    def _give(self, request: Any, own: RequestBudget, prefix: Prefix) -> None:
        """Make windows a request's own."""
        rest, generated = prefix.reading[-1][1], request.num_output_tokens
        keeps = rest if self.budgets.squeezes and not generated else own.windows
        regimes = Regimes(
            self.classes, prefix.reading, request.num_prompt_tokens, keeps, own.windows
        )
        own.begin(generated, regimes)
        self._found[request.request_id] = prefix
        for manager in self.budgets.managers:
            manager.regimes[request.request_id] = regimes

    def _fit_alone(self, request: Any, own: RequestBudget, rungs: list[Windows]) -> Windows:
        """With the pool to itself, a request takes the first level that fits; how it is read."""
        pool, prompt = self.budgets.pool, request.num_prompt_tokens
        full = self.budgets.full_tokens(request)
        while True:
            for reading in rungs:
                if pool.fits_alone(own.windows, reading, full, prompt):
                    return reading
            if not own.movable or own.level == len(own.ladder) - 1:
                return rungs[-1]
            own.level += 1
            rungs = readings(self.classes, own.windows, prompt)

    def _lack(self, claim: Claim, in_use: Sequence[int]) -> int:
        """Blocks that are missing for the pool to hold one more; 0 or less: it can.

        Args:
            in_use: prefix hits that others hold, by class.
        """
        budgets = self.budgets
        if budgets.accounts.overcommitted(claim):
            return budgets.pool.capacity
        # They take nothing, where they never go back.
        shared = [
            0 if budgets.pool.bounded(index, claim.windows) else count
            for index, count in enumerate(in_use)
        ]
        free = budgets.block_pool.get_num_free_blocks()
        return -budgets.accounts.left(free, claim, shared)


def _held(blocks: Sequence[Any]) -> int:
    """Blocks that somebody holds."""
    return sum(block.ref_cnt > 0 for block in blocks)
