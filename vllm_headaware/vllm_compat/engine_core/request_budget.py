"""What the scheduler remembers of one request's budget."""

from __future__ import annotations

from typing import Any

from vllm_headaware.config.request import WINDOWS_KEY
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


def salt(request: Any, own: RequestBudget, windows: Windows | None) -> None:
    """Let a request share prefixes only with those of equal windows; None: the plan's."""
    from vllm_headaware.cache.managers import BlockHashes

    request.cache_salt = f"{own.salt or ''}|{WINDOWS_KEY}={windows}" if windows else own.salt
    request.block_hashes = BlockHashes(windows) if windows else []
    request.update_block_hashes()
