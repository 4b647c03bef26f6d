"""Whether the Triton kernels can serve a model."""

from __future__ import annotations

HEAD_SIZES = (64, 80, 96, 112, 128, 256)
MAX_GROUP_SIZE = 16
"""Most query heads of one KV head: the rows of a matrix product."""
GRANULE = 32
"""Tokens per block are a multiple of this."""


def why_not_triton(head_size: int, group_size: int) -> str | None:
    """What keeps the kernels from serving such heads, as half a sentence; None where nothing does.

    Args:
        head_size: elements of a K or V row.
        group_size: query heads per KV head.
    """
    if head_size not in HEAD_SIZES:
        return f"they take head sizes of {', '.join(map(str, HEAD_SIZES))}, not {head_size}"
    if group_size > MAX_GROUP_SIZE:
        return f"they take up to {MAX_GROUP_SIZE} query heads per KV head, not {group_size}"
    return None
