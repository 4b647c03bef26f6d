"""The visibility rule as the kernels apply it (kernels/reference.py says what it means).

Tokens hidden between the sinks and a window leave a gap; what is left is counted on without it, so
that loops walk over visible tokens only.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton import support

GRANULE = tl.constexpr(support.GRANULE)


@triton.jit
def window_at(position, slot, windows, reading, prompts):
    """Window of the queries at int32 positions of the request in a slot: tokens, or 0 and less for
    everything from token -window on."""
    reads = position < tl.load(prompts + slot)
    return tl.where(reads, tl.load(reading + slot), tl.load(windows + slot))


@triton.jit
def first_seen(position, window, round):
    """First token that queries at positions see by their window, rounded down to blocks."""
    oldest = tl.where(window > 0, tl.maximum(position - window + 1, 0), -window)
    return oldest // round * round


@triton.jit
def gap_before(start, sink):
    """Hidden tokens between the sinks and `start`, in whole granules: the last of them may be shown
    as a window that is not rounded begins in the midst of one."""
    return tl.maximum(start - sink, 0) // GRANULE * GRANULE
