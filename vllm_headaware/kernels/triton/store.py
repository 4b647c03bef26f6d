"""store: K and V of a step's tokens into their blocks, in one launch for all classes of a layer.

Quantised classes get rows rotated by a Hadamard matrix and rounded; their queries are rotated and
rounded to 8 bits in the same launch, once for all that read them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton.classes import chosen, class_of, is_kind, numbers, one_of
from vllm_headaware.kernels.triton.load import (
    COUNTS,
    element,
    key_format,
    quantised,
    row_width,
    share_of,
    value_format,
)
from vllm_headaware.kernels.triton.rotate import rotated

ROWS = tl.constexpr(32)
"""Tokens of a program."""
CHUNK = tl.constexpr(64)
"""Channels that are multiplied at once."""
ROUND = tl.constexpr(12582912.0)
"""1.5 x 2^23: added and taken away it rounds a float32 to whole numbers, half to even."""


@triton.jit
def _rounded(x):
    return (x + ROUND) - ROUND


@triton.jit
def _request_of(token, query_start, num_requests, STEPS: tl.constexpr):
    """The request of each token: the last that begins at or before it."""
    low = token * 0
    high = low + num_requests
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        begins = tl.load(query_start + middle) <= token
        low = tl.where(begins, middle, low)
        high = tl.where(begins, high, middle)
    return low


@triton.jit
def _rotated_rows(
    source, rows, there, signs, column, factor,
    SIZE: tl.constexpr, WIDE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Columns column .. column + WIDTH of rotated rows, float32 [ROWS, WIDE].

    Args:
        rows: where each row begins, elements of source.
        signs: bfloat16 [SIZE, SIZE].
    """
    target = tl.arange(0, WIDE)
    acc = tl.zeros((ROWS, WIDE), tl.float32)
    for base in range(0, SIZE, CHUNK):
        channel = base + tl.arange(0, CHUNK)
        inside = channel < SIZE
        x = tl.load(
            source + rows[:, None] + channel[None, :],
            mask=there[:, None] & inside[None, :],
            other=0,
        )
        matrix = tl.load(
            signs + channel[:, None] * SIZE + column + target[None, :],
            mask=inside[:, None] & (target < WIDTH)[None, :],
            other=0,
        )
        acc = rotated(x, matrix, acc, PARTS)
    return acc * factor


@triton.jit
def _store_rows(
    source, rows, there, second, signs, factor, data, scales, place, scale_place, block,
    LOW: tl.constexpr, KIND: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    HALF_WIDE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One tile of K or V rows in a row format. `second` is 1 for values, whose scales come second;
    lowest values lie LOW blocks of scales after that."""
    column = tl.arange(0, PADDED)
    if KIND == "int8":
        y = _rotated_rows(source, rows, there, signs, 0, factor, SIZE, PADDED, SIZE, PARTS)
        scale = (tl.max(tl.abs(y), 1) / 127).to(tl.bfloat16)
        whole = _rounded(y / tl.maximum(scale.to(tl.float32), 1e-30)[:, None])
        whole = tl.minimum(tl.maximum(whole, -127.0), 127.0).to(tl.int8)
        mask = there[:, None] & (column < SIZE)[None, :]
        tl.store(data + place[:, None] + column[None, :], whole, mask=mask)
        tl.store(scales + scale_place + second * block, scale, mask=there)
    elif KIND == "int4":
        HALF: tl.constexpr = SIZE // 2
        lower = _rotated_rows(source, rows, there, signs, 0, factor, SIZE, HALF_WIDE, HALF, PARTS)
        upper = _rotated_rows(
            source, rows, there, signs, HALF, factor, SIZE, HALF_WIDE, HALF, PARTS
        )
        half = tl.arange(0, HALF_WIDE)
        inside = (half < HALF)[None, :]
        small = tl.minimum(
            tl.min(tl.where(inside, lower, float("inf")), 1),
            tl.min(tl.where(inside, upper, float("inf")), 1),
        )
        large = tl.maximum(
            tl.max(tl.where(inside, lower, float("-inf")), 1),
            tl.max(tl.where(inside, upper, float("-inf")), 1),
        )
        low = small.to(tl.bfloat16)
        scale = ((large - low.to(tl.float32)) / 15).to(tl.bfloat16)
        step = tl.maximum(scale.to(tl.float32), 1e-30)[:, None]
        base = low.to(tl.float32)[:, None]
        q_lower = tl.minimum(tl.maximum(_rounded((lower - base) / step), 0.0), 15.0).to(tl.int32)
        q_upper = tl.minimum(tl.maximum(_rounded((upper - base) / step), 0.0), 15.0).to(tl.int32)
        packed = (q_lower | (q_upper << 4)).to(tl.int8)
        mask = there[:, None] & inside
        tl.store(data + place[:, None] + half[None, :], packed, mask=mask)
        tl.store(scales + scale_place + second * block, scale, mask=there)
        tl.store(scales + scale_place + (LOW + second) * block, low, mask=there)
    else:
        mask = there[:, None] & (column < SIZE)[None, :]
        x = tl.load(source + rows[:, None] + column[None, :], mask=mask, other=0)
        if KIND == "float16":
            x = tl.minimum(tl.maximum(x.to(tl.float32), -65504.0), 65504.0)
        tl.store(data + place[:, None] + column[None, :], x, mask=mask)


@triton.jit
def _store_one(
    query, key, value, q8, q_step, q_sum, signs, factor, layout, query_start, token, there, what,
    nth, head, c, num_requests, query_stride, key_stride, value_stride, q8_stride, scale_stride,
    lens, tables, table_strides, blocks, halves,
    KIND: tl.constexpr, CLASSES: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    HALF_WIDE: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Keys, values or queries of one head, whose class is of a KV format; see store()."""
    if what < 2:
        KEY: tl.constexpr = key_format(KIND)
        VALUE: tl.constexpr = value_format(KIND)
        KEY_ROW: tl.constexpr = row_width(KEY, SIZE)
        VALUE_ROW: tl.constexpr = row_width(VALUE, SIZE)
        block_stride, head_stride, first, _, _, block, _, _ = numbers(c, layout)
        request = _request_of(token, query_start, num_requests, STEPS)
        end = tl.load(query_start + request + 1, mask=there, other=0)
        length = tl.load(one_of(c, lens, CLASSES) + request, mask=there, other=0)
        position = tl.maximum(length - end + token, 0)
        wide = one_of(c, table_strides, CLASSES)
        table = one_of(c, tables, CLASSES) + request.to(tl.int64) * wide
        share, inside = share_of(position, there, table, block_stride, block)
        share = share + (nth - first) * head_stride
        scale_place = (share + block * (KEY_ROW + VALUE_ROW)) // 2 + inside
        wide_token = token.to(tl.int64)
        if KEY == VALUE:
            source = key
            stride = key_stride
            if what == 1:
                source = value
                stride = value_stride
            _store_rows(
                source, wide_token * stride + head * SIZE, there, what, signs, factor,
                blocks, halves, share + (what * block + inside) * KEY_ROW, scale_place,
                block, 2, KEY, SIZE, PADDED, HALF_WIDE, PARTS,
            )  # fmt: skip
        elif what == 0:
            _store_rows(
                key, wide_token * key_stride + head * SIZE, there, 0, signs, factor,
                blocks, halves, share + inside * KEY_ROW, scale_place, block, 2,
                KEY, SIZE, PADDED, HALF_WIDE, PARTS,
            )  # fmt: skip
        else:
            _store_rows(
                value, wide_token * value_stride + head * SIZE, there, 1, signs, factor,
                blocks, halves, share + block * KEY_ROW + inside * VALUE_ROW, scale_place,
                block, 1, VALUE, SIZE, PADDED, HALF_WIDE, PARTS,
            )  # fmt: skip
    elif quantised(KIND):
        own = head * GROUP + what - 2
        rows = token.to(tl.int64) * query_stride + own * SIZE
        y = _rotated_rows(query, rows, there, signs, 0, factor, SIZE, PADDED, SIZE, PARTS)
        step = tl.maximum(tl.max(tl.abs(y), 1), 1e-30) / 127
        whole = _rounded(y / step[:, None])
        column = tl.arange(0, PADDED)
        mask = there[:, None] & (column < SIZE)[None, :]
        to = token.to(tl.int64) * q8_stride + own * SIZE
        tl.store(q8 + to[:, None] + column[None, :], whole.to(tl.int8), mask=mask)
        tl.store(q_step + token * scale_stride + own, step, mask=there)
        tl.store(q_sum + token * scale_stride + own, tl.sum(whole, 1), mask=there)


@triton.jit(do_not_specialize=COUNTS)
def store(
    query, key, value, q8, q_step, q_sum, signs, factor, order, layout, query_start, num_tokens,
    num_requests, query_stride, key_stride, value_stride, q8_stride, scale_stride,
    lens, tables, table_strides, data, scales, num_kv_heads,
    KINDS: tl.constexpr, DISTINCT: tl.constexpr, CLASSES: tl.constexpr, SIZE: tl.constexpr,
    PADDED: tl.constexpr, HALF_WIDE: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Grid [ceil(num_tokens / ROWS), (2 + GROUP) x num_kv_heads]: keys, values, queries.

    Args:
        order: int32 [num_kv_heads], KV heads of the layer, class after class.
        layout: int64 [CLASSES, FIELDS], see classes.py.
        lens, tables, table_strides: tuples, one a class, of the step.
        data, scales: tuples, a class's blocks as elements, and as 16-bit ones.
    """
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    what = tl.program_id(1) // num_kv_heads
    nth = tl.program_id(1) % num_kv_heads
    head = tl.load(order + nth)
    there = (token < num_tokens) & (token < tl.load(query_start + num_requests))
    c = class_of(nth, layout, CLASSES)
    for k in tl.static_range(len(DISTINCT)):
        if is_kind(c, KINDS, element(DISTINCT, k), CLASSES):
            _store_one(
                query, key, value, q8, q_step, q_sum, signs, factor, layout, query_start, token,
                there, what, nth, head, c, num_requests, query_stride, key_stride, value_stride,
                q8_stride, scale_stride, lens, tables, table_strides,
                chosen(c, data, KINDS, element(DISTINCT, k), CLASSES), one_of(c, scales, CLASSES),
                element(DISTINCT, k), CLASSES, SIZE, PADDED, HALF_WIDE, GROUP, STEPS, PARTS,
            )  # fmt: skip
