"""merge: the pieces of each request that decodes, put together and rotated back."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton.attend import NOTHING
from vllm_headaware.kernels.triton.classes import FIELDS, class_of, is_quantised, numbers
from vllm_headaware.kernels.triton.load import COUNTS, LOG2E
from vllm_headaware.kernels.triton.rotate import rotated

ROWS = tl.constexpr(16)
"""Rows of a matrix product; the query heads of a KV head fill the first of them."""
CHUNK = tl.constexpr(32)
"""Partial results, of pieces and query heads, that are put together at once."""
COLUMNS = tl.constexpr(64)
"""Columns of the result that are rotated back at once."""


@triton.jit(do_not_specialize=COUNTS)
def merge(
    output, partial, partial_most, partial_sums, order, layout, query_start, starts, signs, factor,
    sink_logits, num_requests, output_stride,
    KINDS: tl.constexpr, CLASSES: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    GROUP: tl.constexpr, WIDE_GROUP: tl.constexpr, REQUESTS: tl.constexpr,
    HAS_SINKS: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [num_requests, num_kv_heads].

    Args:
        sink_logits: float32 [query heads], with HAS_SINKS: logits that no value belongs to.
        others: see store.store and decode.decode.
    """
    request = tl.program_id(0)
    token = tl.load(query_start + request)
    if tl.load(query_start + request + 1) - token != 1:
        return
    nth = tl.program_id(1)
    head = tl.load(order + nth)
    c = class_of(nth, layout, CLASSES)
    base = 0
    for other in tl.static_range(CLASSES - 1):
        if c > other:
            pieces = tl.load(starts + other * (REQUESTS + 1) + num_requests)
            base += pieces * tl.load(layout + other * FIELDS + 3).to(tl.int32)
    _, _, first, count, _, _, _, _ = numbers(c, layout)
    own = starts + c * (REQUESTS + 1) + request
    begin = tl.load(own)
    end = (tl.load(own + 1) - begin) * WIDE_GROUP
    place = (base + begin * count + nth - first).to(tl.int64) * GROUP
    row = tl.arange(0, ROWS)
    source = tl.arange(0, PADDED)
    asked = row < GROUP
    most = tl.full((ROWS,), NOTHING, tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    if HAS_SINKS:
        most = tl.load(sink_logits + head * GROUP + row, mask=asked, other=0.0) * LOG2E
        sums = tl.where(asked, 1.0, 0.0)
    values = tl.zeros((ROWS, PADDED), tl.float32)
    # A matrix that picks, for each head, its own partial results out of all heads'.
    for chunk in tl.range(0, end, CHUNK, num_stages=3):
        part = chunk + tl.arange(0, CHUNK)
        its = part % WIDE_GROUP
        there = (part < end) & (its < GROUP)
        at = place + part // WIDE_GROUP * (count * GROUP) + its
        its_most = tl.load(partial_most + at, mask=there, other=NOTHING)
        its_sums = tl.load(partial_sums + at, mask=there, other=0.0)
        rows = partial + at[:, None] * SIZE + source[None, :]
        x = tl.load(rows, mask=there[:, None] & (source < SIZE)[None, :], other=0.0)
        mine = (its[None, :] == row[:, None]) & there[None, :]
        each = tl.where(mine, its_most[None, :], NOTHING)
        highest = tl.maximum(most, tl.max(each, 1))
        weights = tl.where(mine, tl.exp2(each - highest[:, None]), 0.0)
        shrink = tl.exp2(most - highest)
        sums = sums * shrink + tl.sum(weights * its_sums[None, :], 1)
        values = tl.dot(weights, x, acc=values * shrink[:, None], input_precision=PRECISION)
        most = highest
    values = values / tl.where(sums == 0, 1.0, sums)[:, None]
    to = token.to(tl.int64) * output_stride + (head * GROUP + row) * SIZE
    if is_quantised(c, KINDS, CLASSES):
        for column in range(0, SIZE, COLUMNS):
            target = column + tl.arange(0, COLUMNS)
            inside = (target < SIZE)[None, :]
            matrix = tl.load(
                signs + source[:, None] * SIZE + target[None, :],
                mask=(source < SIZE)[:, None] & inside,
                other=0,
            )
            turned = rotated(values, matrix, tl.zeros((ROWS, COLUMNS), tl.float32), PARTS)
            mask = asked[:, None] & inside
            tl.store(output + to[:, None] + target[None, :], turned * factor, mask=mask)
    else:
        mask = asked[:, None] & (source < SIZE)[None, :]
        tl.store(output + to[:, None] + source[None, :], values, mask=mask)
