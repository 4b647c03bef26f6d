"""What decode and prefill share: queries, and one tile of keys and values that meets them."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton import classes
from vllm_headaware.kernels.triton.load import (
    LOG2E,
    part_width,
    parts,
    row_width,
    rows_of,
    tile,
    unpacked,
)
from vllm_headaware.kernels.triton.rule import GRANULE

RECIPROCAL_BITS = tl.constexpr(classes.RECIPROCAL_BITS)
NOTHING = tl.constexpr(-1e30)
"""The largest logit of no tokens: finite, so that nothing is divided by it or taken from itself."""


@triton.jit
def load_queries(
    query, q8, q_step, q_sum, token, head, there, query_stride, q8_stride, scale_stride, scale,
    KEY: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, CAP: tl.constexpr,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Query rows [ROWS, WIDE] for keys in two halves (the same twice but for int4), what a product
    is multiplied by to be a logit, base 2 if no cap follows, and, where queries are rounded, the
    sums of their elements, float32 [ROWS]."""
    factor = scale * (LOG2E if CAP == 0 else 1.0)
    if KEY == "int8" or KEY == "int4":
        at = token * scale_stride + head
        step = tl.load(q_step + at, mask=there, other=1.0) * factor
        total = tl.load(q_sum + at, mask=there, other=0.0)
        rows = token.to(tl.int64) * q8_stride + head * SIZE
        if KEY == "int4":
            low = rows_of(q8, rows, there, WIDE, SIZE // 2, TURNED=False)
            high = rows_of(q8, rows + SIZE // 2, there, WIDE, SIZE // 2, TURNED=False)
        else:
            low = rows_of(q8, rows, there, WIDE, SIZE, TURNED=False)
            high = low
    else:
        step = tl.full((ROWS,), 1.0, tl.float32) * factor
        total = step
        rows = token.to(tl.int64) * query_stride + head * SIZE
        low = rows_of(query, rows, there, WIDE, SIZE, TURNED=False).to(COMPUTE)
        high = low
    return low, high, step, total


@triton.jit
def find(base, end, gap, sink, table, block, reciprocal):
    """The GRANULE visible tokens from `base` on: the first of them, the number of its block and its
    place in that.

    Args:
        base: int32, a multiple of GRANULE, place counted without the gap.
        end: int32; for places from there on the block is 0, which there always is.
        reciprocal: of classes.numbers().
    """
    token = base + tl.where(base >= sink, gap, 0)
    nth = ((token // GRANULE).to(tl.int64) * reciprocal >> RECIPROCAL_BITS).to(tl.int32)
    number = tl.load(table + nth, mask=base < end, other=0)
    return token, number, tl.multiple_of(token - nth * block, GRANULE)


@triton.jit
def spread(first, second, TOKENS: tl.constexpr):
    """[TOKENS] of one number for each GRANULE, multiples of 16."""
    both = tl.where(tl.arange(0, TOKENS) < GRANULE, first, second)
    # Not every version of the compiler sees by itself how far such numbers are alike and divisible,
    # without which it loads single bytes.
    return tl.max_constancy(tl.multiple_of(both, 16), GRANULE)


@triton.jit
def nothing_yet(VALUE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Weighted values of no tokens: a tuple of float32 [FIRST, SECOND], a part each."""
    none = tl.zeros((FIRST, SECOND), tl.float32)
    if VALUE == "int4":
        acc = (none, none, none, none)
    elif VALUE == "int8":
        acc = (none, none)  # type: ignore[assignment]
    else:
        acc = (none,)  # type: ignore[assignment]
    return acc


@triton.jit
def fetch(
    base, end, number_a, inside_a, number_b, inside_b, data, halves, block_stride, head_offset,
    block, KEY: tl.constexpr, VALUE: tl.constexpr, SIZE: tl.constexpr, KEY_WIDE: tl.constexpr,
    TOKENS: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """A tile of keys and values as they are stored.

    Args:
        base: place of the tile's first token; those from `end` on are none.
        number_a, inside_a, number_b, inside_b: of find(), of its first and second GRANULE.
        data, halves: the class's blocks as elements, and as 16-bit ones.

    Returns:
        keys: [TOKENS, KEY_WIDE].
        values: [TOKENS, part_width], where there are scales 16 bits of a row each;
            TURNED: [part_width, TOKENS].
        key_scale, key_low, value_scale, value_low: float32 [TOKENS]; of tokens that are none the
            latter two are 0. The middle of int4 values, not the lowest.
    """
    KEY_ROW: tl.constexpr = row_width(KEY, SIZE)
    VALUE_ROW: tl.constexpr = row_width(VALUE, SIZE)
    WIDE: tl.constexpr = part_width(VALUE, SIZE)
    lane = tl.arange(0, TOKENS)
    there = base + lane < end
    inside_b = inside_b - GRANULE
    share_a = number_a.to(tl.int64) * block_stride + head_offset
    share_b = number_b.to(tl.int64) * block_stride + head_offset
    rows = spread(share_a + inside_a * KEY_ROW, share_b + inside_b * KEY_ROW, TOKENS)
    keys = tile(data, rows + lane * KEY_ROW, KEY_WIDE, KEY_ROW, TURNED=False)
    value_a = share_a + block * KEY_ROW + inside_a * VALUE_ROW
    value_b = share_b + block * KEY_ROW + inside_b * VALUE_ROW
    if KEY == "int8" or KEY == "int4":
        # All formats with scales have elements of a byte; what is halved is a multiple of 32.
        after = block * (KEY_ROW + VALUE_ROW)
        place_a = tl.multiple_of((share_a + after) // 2, 16) + inside_a
        place_b = tl.multiple_of((share_b + after) // 2, 16) + inside_b
        place = halves + spread(place_a, place_b, TOKENS) + lane
        key_scale = tl.load(place).to(tl.float32)
        value_scale = tl.where(there, tl.load(place + block).to(tl.float32), 0.0)
        key_low, value_low = key_scale, value_scale
        if KEY == "int4":
            key_low = tl.load(place + 2 * block).to(tl.float32)
        if VALUE == "int4":
            LOW: tl.constexpr = 3 if KEY == "int4" else 2
            value_low = tl.load(place + LOW * block).to(tl.float32)
            value_low = tl.where(there, value_low + 8 * value_scale, 0.0)
        value_a, value_b = tl.multiple_of(value_a // 2, 16), tl.multiple_of(value_b // 2, 16)
        rows = spread(value_a, value_b, TOKENS) + lane * (VALUE_ROW // 2)
        values = tile(halves, rows, WIDE, SIZE // parts(VALUE), TURNED)
    else:
        rows = spread(value_a, value_b, TOKENS) + lane * VALUE_ROW
        values = rows_of(data, rows, there, WIDE, VALUE_ROW, TURNED)
        key_scale = tl.zeros((TOKENS,), tl.float32)
        key_low, value_scale, value_low = key_scale, key_scale, key_scale
    return keys, values, key_scale, key_low, value_scale, value_low


@triton.jit
def _weigh_part(
    weights, values, acc, shrink, part: tl.constexpr, VALUE: tl.constexpr,
    PRECISION: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    if VALUE == "int4" or VALUE == "int8":
        own = unpacked(values, part, VALUE, weights.dtype)
    else:
        own = values.to(weights.dtype)
    if TURNED:
        kept = acc[part] * shrink[None, :]
        grown = tl.dot(own, weights, acc=kept, input_precision=PRECISION)
    else:
        kept = acc[part] * shrink[:, None]
        grown = tl.dot(weights, own, acc=kept, input_precision=PRECISION)
    return grown


@triton.jit
def weigh(
    weights, values, acc, shrink,
    VALUE: tl.constexpr, PRECISION: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """Weighted values so far, shrunk, and those of a tile.

    int4 values are taken around their middle: were all of one sign, what a weight is rounded by
    would shift all channels alike, and the rotation back would gather that in one of them.

    Args:
        weights: [rows, TOKENS], or TURNED over, times the values' scales where they have any.
        values: of fetch().
        acc: see nothing_yet().
        shrink: float32 [rows].
    """
    first = _weigh_part(weights, values, acc, shrink, 0, VALUE, PRECISION, TURNED)
    if VALUE == "int4":
        second = _weigh_part(weights, values, acc, shrink, 1, VALUE, PRECISION, TURNED)
        third = _weigh_part(weights, values, acc, shrink, 2, VALUE, PRECISION, TURNED)
        fourth = _weigh_part(weights, values, acc, shrink, 3, VALUE, PRECISION, TURNED)
        grown = (first, second, third, fourth)
    elif VALUE == "int8":
        second = _weigh_part(weights, values, acc, shrink, 1, VALUE, PRECISION, TURNED)
        grown = (first, second)  # type: ignore[assignment]
    else:
        grown = (first,)  # type: ignore[assignment]
    return grown
