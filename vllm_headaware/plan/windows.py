"""Sinks and windows in blocks: the one place that rounds tokens to blocks. Plain integers.

Both are rounded outward: never less than asked is kept.
"""

from __future__ import annotations

Windows = tuple[int | None, ...]
"""Last tokens that each class of a plan keeps of a request, in the plan's order; None keeps
everything."""


def sink_blocks(sink: int, block_tokens: int) -> int:
    """Whole blocks that hold the first `sink` tokens."""
    return -(-sink // block_tokens)


def first_window_block(num_processed: int, window: int, block_tokens: int) -> int:
    """Index of the first block that the query at position num_processed sees by its window."""
    return max(num_processed - window + 1, 0) // block_tokens


def reading_window(window: int | None, prefill_window: int) -> int | None:
    """What a window is while a prompt is read, under a policy's prefill_window."""
    return None if window is None else max(window, prefill_window)
