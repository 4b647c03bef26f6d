"""Progress lines: on stderr, with the seconds since the start, so that stdout stays data."""

from __future__ import annotations

import sys
import time

_START = time.monotonic()


def elapsed_seconds() -> float:
    """Seconds since this process imported the module."""
    return time.monotonic() - _START


def say(text: str) -> None:
    """Print one progress line."""
    print(f"[{elapsed_seconds():6.1f} s] {text}", file=sys.stderr, flush=True)
