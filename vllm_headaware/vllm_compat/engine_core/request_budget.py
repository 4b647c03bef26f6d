"""What the scheduler remembers of one request's budget."""

from __future__ import annotations

from vllm_headaware.plan.windows import Windows


class RequestBudget:
    """What the scheduler remembers of a request: its ladder, and its place on it."""

    def __init__(self, ladder: list[Windows], pinned: int | None, salt: str | None) -> None:
        self.ladder, self.pinned, self.salt = ladder, pinned, salt
        self.level = pinned or 0
        self.given: Windows | None = None
        self.started = False
        self.expected = 0
        """Tokens of its answer that were expected when it started."""
