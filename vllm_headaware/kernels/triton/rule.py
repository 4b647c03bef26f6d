"""The visibility rule as the kernels apply it (kernels/reference.py says what it means).

Tokens hidden between the sinks and a window leave a gap; what is left is counted on without it, so
that loops walk over visible tokens only.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNLIMITED = tl.constexpr(1 << 30)
"""A window that hides nothing; callers write 0."""


@triton.jit
def window_at(position, slot, windows, reading, prompts):
    """Window of the queries at int32 positions of the request in a slot, tokens."""
    own = tl.load(windows + slot)
    read = tl.load(reading + slot)
    own = tl.where(own == 0, UNLIMITED, own)
    read = tl.where(read == 0, UNLIMITED, read)
    return tl.where(position < tl.load(prompts + slot), tl.maximum(own, read), own)


@triton.jit
def first_seen(position, window, round):
    """First token that queries at positions see by their window, rounded down to blocks."""
    return tl.maximum(position - window + 1, 0) // round * round


@triton.jit
def gap_before(start, length, sink):
    """Sink tokens of a request of `length` tokens, and hidden ones between them and `start`."""
    sinks = tl.minimum(sink, length)
    return sinks, tl.maximum(start - sinks, 0)
