"""Sinks and windows in blocks: the one place that rounds tokens to blocks. Plain integers.

Both are rounded outward: never less than asked is kept.
"""

from __future__ import annotations

Window = int | None
"""Last tokens that are kept besides the sinks; None keeps everything. A number of 0 or less keeps
everything from token -number on, which is where a block begins."""
Windows = tuple[Window, ...]
"""What each class of a plan keeps of a request, in the plan's order."""


def sink_blocks(sink: int, block_tokens: int) -> int:
    """Whole blocks that hold the first `sink` tokens."""
    return -(-sink // block_tokens)


def first_token(position: int, window: Window) -> int:
    """First token that the query at a position sees by its window, before rounding."""
    if window is None:
        return 0
    return max(position - window + 1, 0) if window > 0 else -window


def first_window_block(position: int, window: Window, block_tokens: int) -> int:
    """Index of the first block that the query at a position sees by its window."""
    return first_token(position, window) // block_tokens


def reading_window(window: Window, prefill_window: int | None) -> Window:
    """What a window is while a prompt is read, under a policy's prefill_window."""
    if window is None or prefill_window is None:
        return None
    return max(window, prefill_window) if window > 0 else window


def covers(wide: Window, narrow: Window, position: int) -> bool:
    """Whether every query from a position on sees by a wide window all it would by a narrow one."""
    if wide is not None and wide > 0:
        return narrow is not None and 0 < narrow <= wide
    return first_token(position, wide) <= first_token(position, narrow)


def in_tokens(windows: Windows) -> list[int]:
    """Windows as kernels take them: 0 for everything."""
    return [window or 0 for window in windows]
