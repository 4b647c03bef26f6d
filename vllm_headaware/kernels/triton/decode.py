"""decode: one query a request. Pieces of requests are attended to by a fixed number of programs
that walk the work list; then the pieces of a request are merged, and rotated back."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton.attend import load_queries, meet
from vllm_headaware.kernels.triton.classes import (
    FIELDS,
    chosen,
    class_of,
    is_kind,
    is_quantised,
    numbers,
    one_of,
)
from vllm_headaware.kernels.triton.load import LOG2E, key_format, value_format
from vllm_headaware.kernels.triton.rotate import rotated
from vllm_headaware.kernels.triton.rule import first_seen, gap_before, window_at
from vllm_headaware.kernels.triton.work import piece_tokens

ROWS = tl.constexpr(16)
"""Rows of a matrix product; the query heads of a KV head fill the first of them."""


@triton.jit
def _piece(
    query, q8, q_step, q_sum, token, length, window, piece, head, place,
    partial, partial_most, partial_sums, query_stride, q8_stride, scale_stride,
    table, data, scales, block_stride, head_offset, sink, block, round, scale,
    KIND: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, HALF_WIDE: tl.constexpr,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, CAP: tl.constexpr, COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr, MOST_PIECES: tl.constexpr, PIECE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    KEY: tl.constexpr = key_format(KIND)
    VALUE: tl.constexpr = value_format(KIND)
    KEY_WIDE: tl.constexpr = HALF_WIDE if KEY == "int4" else PADDED
    WIDE: tl.constexpr = HALF_WIDE if VALUE == "int4" else PADDED
    row = tl.arange(0, ROWS)
    asked = row < GROUP
    low, high, step, total = load_queries(
        query, q8, q_step, q_sum, row * 0 + token, head * GROUP + row, asked,
        query_stride, q8_stride, scale_stride, KEY, SIZE, KEY_WIDE, COMPUTE, ROWS,
    )  # fmt: skip
    start = first_seen(length - 1, window, round)
    sinks, gap = gap_before(start, length, sink)
    each = piece_tokens(length - gap, MOST_PIECES, PIECE)
    begin = piece * each
    end = tl.minimum(begin + each, length - gap)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    least = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    first = tl.zeros((ROWS, WIDE), tl.float32)
    second = tl.zeros((ROWS, WIDE if VALUE == "int4" else 1), tl.float32)
    for base in tl.range(begin, end, TOKENS, num_stages=STAGES):
        visible = base + tl.arange(0, TOKENS)
        most, least, sums, first, second = meet(
            low, high, step, total, row * 0 + length - 1, row * 0 + start,
            most, least, sums, first, second, visible, visible < end, sinks, gap, sink,
            table, data, scales, block_stride, head_offset, block, scale,
            KEY, VALUE, SIZE, KEY_WIDE, WIDE, CAP, COMPUTE, PRECISION,
        )  # fmt: skip
    column = tl.arange(0, WIDE)
    at = place.to(tl.int64) * GROUP + row
    rows = at * SIZE
    out = partial + rows[:, None] + column[None, :]
    if VALUE == "int4":
        mask = asked[:, None] & (column < SIZE // 2)[None, :]
        tl.store(out, first + least[:, None], mask=mask)
        tl.store(out + SIZE // 2, second + least[:, None], mask=mask)
    else:
        tl.store(out, first, mask=asked[:, None] & (column < SIZE)[None, :])
    tl.store(partial_most + at, most, mask=asked)
    tl.store(partial_sums + at, sums, mask=asked)


@triton.jit
def decode(
    query, q8, q_step, q_sum, order, layout, query_start, prompts, slots, items, starts,
    num_requests, partial, partial_most, partial_sums, query_stride, q8_stride, scale_stride,
    lens, windows, reading, tables, table_strides, data, scales, scale,
    KINDS: tl.constexpr, DISTINCT: tl.constexpr, CLASSES: tl.constexpr, SIZE: tl.constexpr,
    PADDED: tl.constexpr, HALF_WIDE: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr,
    CAP: tl.constexpr, COMPUTES: tl.constexpr, PRECISIONS: tl.constexpr,
    MOST_PIECES: tl.constexpr, PIECE: tl.constexpr, MOST_ITEMS: tl.constexpr,
    REQUESTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid [any]: each program takes every n-th pair of a piece and a KV head of its class.

    Args:
        partial: float32 [most places, GROUP, SIZE]; partial_most, partial_sums: [.., GROUP].
        COMPUTES, PRECISIONS: of each of DISTINCT.
        others: see store.store and work.list_work.
    """
    pairs = 0
    for other in tl.static_range(CLASSES):
        count = tl.load(starts + other * (REQUESTS + 1) + num_requests)
        pairs += count * tl.load(layout + other * FIELDS + 3).to(tl.int32)
    for turn in range(tl.program_id(0), pairs, tl.num_programs(0)):
        pair = turn + tl.program_id(0) * 0
        c = 0
        before = 0
        passed = 0
        for other in tl.static_range(CLASSES - 1):
            count = tl.load(starts + other * (REQUESTS + 1) + num_requests)
            passed += count * tl.load(layout + other * FIELDS + 3).to(tl.int32)
            if pair >= passed:
                c = other + 1
                before = passed
        block_stride, head_stride, first, count, sink, block, round = numbers(c, layout)
        own = (pair - before) % count
        item = tl.load(items + c * MOST_ITEMS + (pair - before) // count)
        request = item // MOST_PIECES
        length = tl.load(one_of(c, lens, CLASSES) + request)
        window = window_at(
            length - 1, tl.load(slots + request), one_of(c, windows, CLASSES),
            one_of(c, reading, CLASSES), prompts,
        )  # fmt: skip
        wide = one_of(c, table_strides, CLASSES)
        table = one_of(c, tables, CLASSES) + request.to(tl.int64) * wide
        for k in tl.static_range(len(DISTINCT)):
            if is_kind(c, KINDS, DISTINCT[k], CLASSES):
                _piece(
                    query, q8, q_step, q_sum, tl.load(query_start + request), length, window,
                    item % MOST_PIECES, tl.load(order + first + own), pair,
                    partial, partial_most, partial_sums, query_stride, q8_stride, scale_stride,
                    table, chosen(c, data, KINDS, DISTINCT[k], CLASSES),
                    one_of(c, scales, CLASSES), block_stride, own * head_stride, sink, block,
                    round, scale, DISTINCT[k], SIZE, PADDED, HALF_WIDE, GROUP, TOKENS, CAP,
                    COMPUTES[k], PRECISIONS[k], MOST_PIECES, PIECE, STAGES,
                )  # fmt: skip


@triton.jit
def merge(
    output, partial, partial_most, partial_sums, order, layout, query_start, starts, signs, factor,
    sink_logits, num_requests, output_stride,
    KINDS: tl.constexpr, CLASSES: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    GROUP: tl.constexpr, REQUESTS: tl.constexpr, HAS_SINKS: tl.constexpr, PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid [num_requests, num_kv_heads, columns / COLUMNS]: the pieces of a request, merged and
    rotated back.

    Args:
        sink_logits: float32 [query heads], with HAS_SINKS: logits that no value belongs to.
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
    _, _, first, count, _, _, _ = numbers(c, layout)
    row = tl.arange(0, ROWS)
    source = tl.arange(0, PADDED)
    asked = row < GROUP
    mask = asked[:, None] & (source < SIZE)[None, :]
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    if HAS_SINKS:
        logits = tl.load(sink_logits + head * GROUP + row, mask=asked, other=float("-inf"))
        most = logits * LOG2E
        sums = tl.where(asked, 1.0, 0.0)
    values = tl.zeros((ROWS, PADDED), tl.float32)
    own = starts + c * (REQUESTS + 1) + request
    for item in range(tl.load(own), tl.load(own + 1)):
        place = (base + item * count + nth - first).to(tl.int64)
        at = place * GROUP + row
        its_most = tl.load(partial_most + at, mask=asked, other=float("-inf"))
        its_sums = tl.load(partial_sums + at, mask=asked, other=0.0)
        its = tl.load(partial + at[:, None] * SIZE + source[None, :], mask=mask, other=0.0)
        highest = tl.maximum(most, its_most)
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        before, now = tl.exp2(most - safe), tl.exp2(its_most - safe)
        sums = sums * before + its_sums * now
        values = values * before[:, None] + its * now[:, None]
        most = highest
    values = values / tl.where(sums == 0, 1.0, sums)[:, None]
    to = token.to(tl.int64) * output_stride + (head * GROUP + row) * SIZE
    if is_quantised(c, KINDS, CLASSES):
        target = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
        matrix = tl.load(
            signs + source[:, None] * SIZE + target[None, :],
            mask=(source < SIZE)[:, None] & (target < SIZE)[None, :],
            other=0,
        )
        turned = rotated(values, matrix, tl.zeros((ROWS, COLUMNS), tl.float32), PARTS) * factor
        inside = asked[:, None] & (target < SIZE)[None, :]
        tl.store(output + to[:, None] + target[None, :], turned, mask=inside)
    elif tl.program_id(2) == 0:
        tl.store(output + to[:, None] + source[None, :], values, mask=mask)
