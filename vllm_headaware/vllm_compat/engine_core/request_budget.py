"""What the scheduler remembers of one request's budget."""

from __future__ import annotations

from typing import Any

from vllm_headaware.cache.accounts import Account
from vllm_headaware.cache.at_hand import AtHand
from vllm_headaware.cache.regimes import Regimes
from vllm_headaware.plan.windows import Window, Windows


def settled(request: Any) -> int:
    """Tokens of a request whose step is over."""
    return request.num_computed_tokens - request.num_in_flight_tokens


class RequestBudget:
    """What the scheduler remembers of a request: its ladder, its place on it, and its windows.

    Attributes:
        full: whether it asked for every head to keep everything.
        compacted: windows of classes of which it keeps a share, by index, since it started last.
        level: its place on the ladder.
        started_at: the level it started at; None before.
        expected: tokens of its answer that were expected when it started.
        passes: (tokens of its answer there were, windows by position): one for each time it
            started; a request that was put back is computed anew.
    """

    def __init__(self, ladder: list[Windows], pinned: int | None, full: bool = False) -> None:
        self.ladder, self.pinned, self.full = ladder, pinned, full
        self.compacted: dict[int, Window] = {}
        self.level = pinned or 0
        self.started_at: int | None = None
        self.expected = 0
        self.passes: list[tuple[int, Regimes]] = []

    @property
    def windows(self) -> Windows:
        """What each class keeps of it; while there is room it may keep more."""
        windows = self.ladder[self.level]
        if not self.compacted:
            return windows
        return tuple(self.compacted.get(index, window) for index, window in enumerate(windows))

    @property
    def movable(self) -> bool:
        """Whether its level is still open."""
        return self.pinned is None and self.started_at is None

    @property
    def regimes(self) -> Regimes | None:
        """Its windows by position, since it started last."""
        return self.passes[-1][1] if self.passes else None

    def begin(self, generated: int, regimes: Regimes) -> None:
        """It is to start, with so many tokens of its answer; if it has to wait it begins again."""
        if self.passes and self.passes[-1][0] == generated:
            self.passes.pop()
        self.passes.append((generated, regimes))


class Running:
    """A running request, with all at hand that a step may ask of it.

    Attributes:
        account: its latest.
        quiet: tokens up to which a decoding request takes no block, gives none back, and fills
            none; 0 where that is not known.
        compacts: whether it is to be compacted yet.
    """

    __slots__ = ("account", "classes", "compacts", "quiet", "regimes", "request")

    def __init__(self, request: Any, regimes: Regimes, classes: list[AtHand]) -> None:
        self.request, self.regimes, self.classes = request, regimes, classes
        self.quiet, self.compacts = 0, True
        self.account: Account

    def own(self) -> list[int]:
        """Blocks of its own, by class; see Account."""
        return [len(c.own) for c in self.classes]

    def quiet_until(self, processed: int, most: int) -> int:
        """See AtHand.quiet_until; no more than `most`."""
        windows = self.regimes.at(processed)
        for c, window in zip(self.classes, windows, strict=True):
            until = c.quiet_until(processed, window)
            if until < most:
                most = until
        return most
