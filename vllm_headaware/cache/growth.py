"""How long answers become: learned from those that ended, so that nobody reserves max_tokens."""

from __future__ import annotations

import bisect
from collections import deque

FIRST_GUESS = 256
"""Tokens of an answer, as long as fewer than ENOUGH have ended."""
ENOUGH = 32
"""Ended answers that are worth more than the first guess."""
MEMORY = 1024
"""Ended answers that are remembered; older ones are forgotten."""
QUANTILE = 0.95
"""Of the answers that ended: so many were no longer than what is expected."""
FEW = 8
"""With fewer longer answers than this on record, one that goes on is expected to double."""


class Growth:
    """A high quantile of the lengths of answers, of those longer than an answer is already.

    Args:
        reserve: expect every answer to take all it may.
    """

    def __init__(self, reserve: bool = False) -> None:
        self.reserve = reserve
        self._order: deque[int] = deque()
        self._sorted: list[int] = []

    def ended(self, generated: int) -> None:
        """An answer ended with so many tokens."""
        if len(self._order) == MEMORY:
            del self._sorted[bisect.bisect_left(self._sorted, self._order.popleft())]
        self._order.append(generated)
        bisect.insort(self._sorted, generated)

    def expected(self, generated: int, most: int) -> int:
        """Tokens that an answer will have at its end.

        Args:
            generated: tokens it has.
            most: tokens it may have.
        """
        if self.reserve:
            return most
        first = bisect.bisect_right(self._sorted, generated)
        longer = len(self._sorted) - first
        guess = 0
        if longer >= FEW:
            guess = self._sorted[first + int(QUANTILE * (longer - 1))]
        if len(self._sorted) < ENOUGH:
            guess = max(guess, FIRST_GUESS)
        if guess <= generated:
            guess = 2 * generated
        return min(max(guess, 1), most)
