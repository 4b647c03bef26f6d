"""Heavy hitters: which blocks of a request are evicted, by the attention they got.

Workers report the attention mass of every block after each step. A request that holds more blocks
than its budget gives up the lightest: never a sink, never one of the latest. What was evicted stays
evicted.
"""

from __future__ import annotations

from collections.abc import Sequence

RECENT_SHARE = 0.5
"""Share of the budget that is the latest blocks, as in the paper."""


class HeavyHitters:
    """Scores and evictions of the requests of one scheduler.

    Args:
        budget_blocks: blocks a request keeps.
        sink_blocks: first blocks that always stay.
    """

    def __init__(self, budget_blocks: int, sink_blocks: int) -> None:
        self.budget_blocks, self.sink_blocks = budget_blocks, sink_blocks
        self.recent_blocks = max(int(budget_blocks * RECENT_SHARE), 1)
        self._scores: dict[str, list[float]] = {}
        self._evicted: dict[str, set[int]] = {}

    def add(self, request_id: str, mass: Sequence[float]) -> None:
        """Add the attention mass of a step.

        Args:
            mass: of each block of the request, by its position; longer than its blocks or shorter.
        """
        scores = self._scores.setdefault(request_id, [])
        scores.extend([0.0] * (len(mass) - len(scores)))
        for index, value in enumerate(mass):
            scores[index] += value

    def evict(self, request_id: str, settled_blocks: int) -> list[int]:
        """Positions of the blocks a request gives up now, lightest first.

        Args:
            settled_blocks: blocks of the request with a token whose step is over.
        """
        evicted = self._evicted.setdefault(request_id, set())
        surplus = settled_blocks - len(evicted) - self.budget_blocks
        if surplus <= 0:
            return []
        scores = self._scores.get(request_id, [])
        old = range(self.sink_blocks, min(settled_blocks - self.recent_blocks, len(scores)))
        lightest = sorted((scores[i], i) for i in old if i not in evicted)[:surplus]
        evicted.update(index for _, index in lightest)
        return [index for _, index in lightest]

    def evicted(self, request_id: str) -> frozenset[int]:
        """Positions of a request's evicted blocks."""
        return frozenset(self._evicted.get(request_id, ()))

    def forget(self, request_id: str) -> None:
        """A request is over, or starts anew."""
        self._scores.pop(request_id, None)
        self._evicted.pop(request_id, None)
