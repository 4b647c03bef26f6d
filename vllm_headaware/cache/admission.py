"""What a pool can hold of requests, and which budget the next one gets.

A request gets its windows when it starts and keeps them for life. `Pool` answers how many blocks a
request takes at most until it has so many tokens; accounts.py adds up what all of them will still
take. `BudgetMonitor` answers how tight the windows of the next request are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_headaware.plan import HeadClass
from vllm_headaware.plan.windows import Windows

LOW_WATER = 0.1
"""Share of the pool: with less than this promised to nobody, budgets tighten."""
HIGH_WATER = 0.25
"""Share of the pool: with more than this promised to nobody for a while, budgets relax."""
PATIENCE = 32
"""Engine steps without pressure before budgets relax by one level."""


@dataclass
class BudgetMonitor:
    """The level of the ladder (0 = the plan's windows) that the next request gets.

    It rises by one when a start leaves less than LOW_WATER, or when a request would have to wait;
    it falls by one after PATIENCE steps without either, if more than HIGH_WATER is free.

    Attributes:
        depth: levels of the ladder.
        level: from 0 to depth - 1.
        calm: steps since pressure was last felt.
    """

    depth: int
    level: int = 0
    calm: int = 0
    changes: dict[str, int] = field(default_factory=lambda: {"tighten": 0, "relax": 0})

    @property
    def at_floor(self) -> bool:
        return self.level == self.depth - 1

    def tighten(self) -> bool:
        """One level up the ladder; False at its end."""
        self.calm = 0
        if self.at_floor:
            return False
        self.level += 1
        self.changes["tighten"] += 1
        return True

    def started(self, share_left: float) -> bool:
        """A request started; returns whether that tightened the budgets of the next.

        Args:
            share_left: share of the pool (0 to 1) now promised to nobody.
        """
        return share_left < LOW_WATER and self.tighten()

    def reset(self) -> None:
        """Nothing is running: back to level 0."""
        self.changes["relax"] += self.level
        self.level = self.calm = 0

    def may_relax(self) -> bool:
        """Whether it is time to look at the pool: a step without pressure has passed."""
        self.calm += 1
        return self.level > 0 and self.calm >= PATIENCE

    def relax(self, share_left: float) -> bool:
        """One level down, if the pool allows it."""
        if self.level == 0 or share_left <= HIGH_WATER:
            return False
        self.level -= 1
        self.calm = 0
        self.changes["relax"] += 1
        return True


class Pool:
    """Arithmetic of one block pool shared by head classes.

    Args:
        classes: of the plan.
        capacity: blocks of the pool.
        max_in_flight: tokens that may be scheduled and not settled, over all requests.
        steps_in_flight: engine steps that may run at once: tokens of a decoding request in flight.
    """

    def __init__(
        self,
        classes: Sequence[HeadClass],
        capacity: int,
        max_in_flight: int,
        steps_in_flight: int = 1,
    ) -> None:
        self.classes, self.capacity = classes, capacity
        self.max_in_flight, self.steps_in_flight = max_in_flight, steps_in_flight

    def fits_alone(
        self, windows: Windows, reading: Windows, full_tokens: int, num_prompt: int
    ) -> bool:
        """Whether the pool can ever hold a request of this length, at the peak of its prefill and
        at its end."""

        def most(tokens: int, own: Windows) -> int:
            return sum(
                c.most_blocks(tokens, window, self.max_in_flight)
                for c, window in zip(self.classes, own, strict=True)
            )

        # Windows become narrower a few steps after the prompt's last token was scheduled.
        read = num_prompt + self.steps_in_flight
        return max(most(full_tokens, windows), most(read, reading)) <= self.capacity

    def bounded(self, index: int, windows: Windows) -> bool:
        """Whether blocks of a class go back while a request runs: by its window, or by score."""
        return windows[index] is not None or self.classes[index].policy.heavy_hitters is not None

    def chunks(self, index: int, prefill_tokens: int) -> int:
        """Blocks of a windowed class for the chunks of prompts that are being computed."""
        tokens = min(prefill_tokens, self.max_in_flight)
        return -(-tokens // self.classes[index].block_tokens)

    def promises(
        self,
        windows: Windows,
        reading: Windows,
        full_tokens: int,
        num_prompt: int,
        prefill_tokens: int,
    ) -> list[int]:
        """Most blocks of each class that a request holds until it has full_tokens tokens.

        Args:
            reading: its windows while its prompt is read.
            num_prompt: tokens of its prompt while it is read; 0 afterwards.
            prefill_tokens: tokens of its prompt that are not settled; 0 when it is decoding.
        """
        promises = []
        for index, (head_class, window) in enumerate(zip(self.classes, windows, strict=True)):
            most = head_class.most_blocks(full_tokens, window, self.steps_in_flight)
            if num_prompt:
                read = head_class.most_blocks(num_prompt, reading[index], self.steps_in_flight)
                most = max(most, read)
            if prefill_tokens and self.bounded(index, windows):
                most = min(most + 1, -(-full_tokens // head_class.block_tokens))
            promises.append(most)
        return promises
