"""Whether the native CPU kernels can serve a model here."""

from __future__ import annotations

from vllm_headaware.kernels.cpu.library import find_kernel

GRANULE = 32
"""Head sizes and tokens per block are multiples of this."""
MAX_HEAD_SIZE = 512
MAX_GROUP_SIZE = 64
"""Most query heads of one KV head."""


def why_not_native(head_size: int, group_size: int) -> str | None:
    """What keeps the kernels from serving such heads, as half a sentence; None where nothing does.

    Args:
        head_size: elements of a K or V row.
        group_size: query heads per KV head.
    """
    if head_size % GRANULE or head_size > MAX_HEAD_SIZE:
        return (
            f"they take head sizes that are multiples of {GRANULE} up to {MAX_HEAD_SIZE},"
            f" not {head_size}"
        )
    if group_size > MAX_GROUP_SIZE:
        return f"they take up to {MAX_GROUP_SIZE} query heads per KV head, not {group_size}"
    if find_kernel() is None:
        return "they were not built (install g++ and install vllm-headaware again)"
    return None
