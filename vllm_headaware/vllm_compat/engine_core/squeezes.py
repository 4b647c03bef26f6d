"""Running requests keep everything while there is room, and are squeezed when it is short.

First to their own windows, those first that hold the most beyond them; then everybody's windows
tighten, level by level, to the floor. What is squeezed comes free at once, or when the steps in
flight are over. Prompts are read as they began.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm_headaware.vllm_compat.engine_core.request_budget import settled

logger = logging.getLogger("vllm.headaware")


class Squeezes:
    """Squeezes of one scheduler's requests.

    Args:
        budgets: of the same scheduler.
    """

    def __init__(self, budgets: Any) -> None:
        self.budgets = budgets
        self._due: dict[str, tuple[int, int]] = {}

    def look_ahead(self) -> None:
        """Squeeze before the blocks that the next steps may take are missing."""
        budgets = self.budgets
        pool, running = budgets.pool, budgets.scheduler.running
        wanted = len(running) // 4 + sum(
            pool.chunks(index, pool.max_in_flight) + 1 for index in range(len(pool.classes))
        )
        lack = wanted - budgets.block_pool.get_num_free_blocks()
        if lack <= 0 or not budgets.accounts.all_surplus():
            return
        for name, (position, surplus) in [*self._due.items()]:
            request = budgets.scheduler.requests.get(name)
            if request is None or settled(request) >= position:
                del self._due[name]
            else:
                lack -= surplus
        while lack > 0 and (freed := self._squeeze_most()):
            lack -= freed

    def make_room(self) -> bool:
        """Squeeze one request, tightening everybody's windows if need be; whether blocks came free
        at once."""
        free = self.budgets.block_pool.get_num_free_blocks()
        while not self._squeeze_most():
            if not self.budgets.tighten("running requests need room"):
                return False
        return self.budgets.block_pool.get_num_free_blocks() > free

    def follow(self, level: int) -> None:
        """Windows of new requests have tightened: those of running ones may be squeezed as far."""
        for request in self.budgets.scheduler.running:
            own = self.budgets.budget_of(request)
            deeper = min(level, len(own.ladder) - 1)
            if own.pinned is None and own.started_at is not None and deeper > own.level:
                own.level = deeper
                self.budgets.open(request)

    def _squeeze_most(self) -> int:
        """Squeeze the decoding request that holds the most beyond its windows: there a block is
        the cheapest, since it is one of the most. Blocks that come free, now or soon; 0: nobody
        holds any."""
        accounts, most, victim = self.budgets.accounts, 0, None
        for request in self.budgets.scheduler.running:
            surplus = accounts.surplus(request.request_id)
            if surplus > most and settled(request) >= request.num_prompt_tokens:
                most, victim = surplus, request
        if victim is not None:
            self._squeeze(victim, most)
        return most

    def _squeeze(self, request: Any, surplus: int) -> None:
        budgets, name, position = self.budgets, request.request_id, request.num_computed_tokens
        own = budgets.budget_of(request)
        why = "surplus" if own.level == own.started_at else "floor"
        own.regimes.squeeze(position, own.windows)
        budgets.tell(request)
        budgets.running[name].quiet = 0
        budgets.events["squeezed"][why] += surplus
        logger.debug(
            "%s is squeezed to %s from token %d on: %d blocks of %s",
            name,
            own.windows,
            position,
            surplus,
            why,
        )
        if settled(request) < position:
            self._due[name] = (position, surplus)
            return
        coordinator = budgets.manager.coordinator
        coordinator.remove_skipped_blocks(name, position, request.num_prompt_tokens)
        budgets.recount(name)
