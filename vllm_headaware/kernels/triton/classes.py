"""Which class a KV head of a layer is in, and what that class has.

Pointers come as tuples, one a class; numbers in one int64 tensor, so that one compiled kernel
serves every layer, however its heads are dealt. Code is made once for each KV format, not for each
class.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton.load import element, quantised
from vllm_headaware.kernels.triton.support import GRANULE

RECIPROCAL_BITS = 31
FIELDS = tl.constexpr(8)
"""Numbers of a class: block and head stride (elements of its format), its first place in the
layer's order of heads, how many heads it has, its sink tokens, tokens per block, tokens that the
start of a window is rounded down to, and reciprocal(tokens per block)."""


def reciprocal(block_tokens: int) -> int:
    """What a number of granules times it, less its last RECIPROCAL_BITS bits, is in whole blocks.

    Exact as long as granules x granules of a block are below 2^RECIPROCAL_BITS.
    """
    return -(-(1 << RECIPROCAL_BITS) // (block_tokens // GRANULE))


@triton.jit
def class_of(nth, layout, CLASSES: tl.constexpr):
    """The class of the head at a place in the layer's order."""
    c = 0
    for other in tl.static_range(1, CLASSES):
        if nth >= tl.load(layout + other * FIELDS + 2):
            c = other
    return c


@triton.jit
def numbers(c, layout):
    """block_stride, head_stride, first, count, sink, block, round, reciprocal of a class."""
    own = layout + c * FIELDS
    block_stride = tl.multiple_of(tl.load(own), 16)
    head_stride = tl.multiple_of(tl.load(own + 1), 16)
    first = tl.load(own + 2).to(tl.int32)
    count = tl.load(own + 3).to(tl.int32)
    sink = tl.load(own + 4).to(tl.int32)
    block = tl.multiple_of(tl.load(own + 5).to(tl.int32), 32)
    round, reciprocal = tl.load(own + 6).to(tl.int32), tl.load(own + 7)
    return block_stride, head_stride, first, count, sink, block, round, reciprocal


@triton.jit
def chosen(c, pointers, KINDS: tl.constexpr, KIND: tl.constexpr, CLASSES: tl.constexpr):
    """The pointer of class c among those whose class is of a KV format; all are of one type."""
    out = pointers[0]
    # Only a class of this format may be a start, since types must agree.
    for other in tl.static_range(CLASSES):
        if element(KINDS, CLASSES - 1 - other) == KIND:
            out = pointers[CLASSES - 1 - other]
    for other in tl.static_range(CLASSES):
        if element(KINDS, other) == KIND:
            if c == other:
                out = pointers[other]
    return out


@triton.jit
def one_of(c, pointers, CLASSES: tl.constexpr):
    """The pointer, or number, of class c."""
    out = pointers[0]
    for other in tl.static_range(1, CLASSES):
        if c == other:
            out = pointers[other]
    return out


@triton.jit
def is_quantised(c, KINDS: tl.constexpr, CLASSES: tl.constexpr):
    """Whether class c meets rounded queries."""
    found = c < 0
    for other in tl.static_range(CLASSES):
        if quantised(element(KINDS, other)):
            found = found | (c == other)
    return found


@triton.jit
def is_kind(c, KINDS: tl.constexpr, KIND: tl.constexpr, CLASSES: tl.constexpr):
    """Whether class c is stored in a KV format."""
    found = c < 0
    for other in tl.static_range(CLASSES):
        if element(KINDS, other) == KIND:
            found = found | (c == other)
    return found
