"""prefill: several queries a request, in tiles of queries and all query heads of a KV head."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton.attend import load_queries, meet
from vllm_headaware.kernels.triton.classes import chosen, class_of, is_kind, numbers, one_of
from vllm_headaware.kernels.triton.load import LOG2E, key_format, row_width, value_format
from vllm_headaware.kernels.triton.rotate import rotated
from vllm_headaware.kernels.triton.rule import first_seen, gap_before, window_at

COLUMNS = tl.constexpr(32)
"""Columns of the result that are rotated back at once."""


@triton.jit
def _turn_back(
    values, second, output, to, asked, signs, factor,
    VALUE: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Rotate a tile of results, whose columns come in two halves for int4, and write it."""
    ROW: tl.constexpr = row_width(VALUE, SIZE)
    source = tl.arange(0, WIDE)
    for base in range(0, SIZE, COLUMNS):
        target = base + tl.arange(0, COLUMNS)
        inside = (source < ROW)[:, None] & (target < SIZE)[None, :]
        matrix = signs + source[:, None] * SIZE + target[None, :]
        upper = tl.load(matrix, mask=inside, other=0)
        turned = rotated(values, upper, tl.zeros((ROWS, COLUMNS), tl.float32), PARTS)
        if VALUE == "int4":
            lower = tl.load(matrix + ROW * SIZE, mask=inside, other=0)
            turned = rotated(second, lower, turned, PARTS)
        mask = asked[:, None] & (target < SIZE)[None, :]
        tl.store(output + to[:, None] + target[None, :], turned * factor, mask=mask)


@triton.jit
def _tile(
    query, q8, q_step, q_sum, output, signs, factor, sink_logits, begin, queries, length, slot,
    offset, head, windows, reading, prompts, query_stride, q8_stride, scale_stride,
    output_stride, table, data, scales, block_stride, head_offset, sink, block, round, scale,
    KIND: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, HALF_WIDE: tl.constexpr,
    GROUP: tl.constexpr, WIDE_GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    CAP: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, HAS_SINKS: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    KEY: tl.constexpr = key_format(KIND)
    VALUE: tl.constexpr = value_format(KIND)
    KEY_WIDE: tl.constexpr = HALF_WIDE if KEY == "int4" else PADDED
    WIDE: tl.constexpr = HALF_WIDE if VALUE == "int4" else PADDED
    row = tl.arange(0, ROWS)
    nth = offset + row // WIDE_GROUP
    asked = (nth < queries) & (row % WIDE_GROUP < GROUP)
    heads = head * GROUP + row % WIDE_GROUP
    token = begin + nth
    low, high, step, total = load_queries(
        query, q8, q_step, q_sum, token, heads, asked, query_stride, q8_stride, scale_stride,
        KEY, SIZE, KEY_WIDE, COMPUTE, ROWS,
    )  # fmt: skip
    position = length - queries + nth
    seen_from = first_seen(position, window_at(position, slot, windows, reading, prompts), round)
    oldest = length - queries + offset
    start = first_seen(oldest, window_at(oldest, slot, windows, reading, prompts), round)
    sinks, gap = gap_before(start, oldest + 1, sink)
    end = tl.minimum(oldest + ROWS // WIDE_GROUP, length) - gap
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    if HAS_SINKS:
        most = tl.load(sink_logits + heads, mask=asked, other=float("-inf")) * LOG2E
        sums = tl.where(asked, 1.0, 0.0)
    least = tl.zeros((ROWS,), tl.float32)
    first = tl.zeros((ROWS, WIDE), tl.float32)
    second = tl.zeros((ROWS, WIDE if VALUE == "int4" else 1), tl.float32)
    for base in tl.range(0, end, TOKENS, num_stages=STAGES):
        visible = base + tl.arange(0, TOKENS)
        most, least, sums, first, second = meet(
            low, high, step, total, position, seen_from, most, least, sums, first, second,
            visible, visible < end, sinks, gap, sink, table, data, scales, block_stride,
            head_offset, block, scale, KEY, VALUE, SIZE, KEY_WIDE, WIDE, CAP, COMPUTE, PRECISION,
        )  # fmt: skip
    whole = tl.where(sums == 0, 1.0, sums)[:, None]
    to = token.to(tl.int64) * output_stride + heads * SIZE
    if VALUE == "int8" or VALUE == "int4":
        values = (first + least[:, None]) / whole
        second = (second + least[:, None]) / whole
        _turn_back(values, second, output, to, asked, signs, factor, VALUE, SIZE, WIDE, ROWS, PARTS)
    else:
        column = tl.arange(0, PADDED)
        mask = asked[:, None] & (column < SIZE)[None, :]
        tl.store(output + to[:, None] + column[None, :], first / whole, mask=mask)


@triton.jit
def prefill(
    query, q8, q_step, q_sum, output, signs, factor, sink_logits, order, layout, query_start,
    prompts, slots, tiles, tile_count, query_stride, q8_stride, scale_stride, output_stride,
    lens, windows, reading, tables, table_strides, data, scales, scale,
    KINDS: tl.constexpr, DISTINCT: tl.constexpr, CLASSES: tl.constexpr, SIZE: tl.constexpr,
    PADDED: tl.constexpr, HALF_WIDE: tl.constexpr, GROUP: tl.constexpr,
    WIDE_GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, CAP: tl.constexpr,
    COMPUTES: tl.constexpr, PRECISIONS: tl.constexpr, HAS_SINKS: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid [most tiles, num_kv_heads]; tiles beyond tile_count are nothing.

    Args:
        see store.store, decode.decode and work.list_work.
    """
    tile = tl.program_id(0)
    if tile >= tl.load(tile_count):
        return
    request = tl.load(tiles + 2 * tile)
    begin = tl.load(query_start + request)
    nth = tl.program_id(1)
    c = class_of(nth, layout, CLASSES)
    block_stride, head_stride, first, _, sink, block, round = numbers(c, layout)
    wide = one_of(c, table_strides, CLASSES)
    table = one_of(c, tables, CLASSES) + request.to(tl.int64) * wide
    for k in tl.static_range(len(DISTINCT)):
        if is_kind(c, KINDS, DISTINCT[k], CLASSES):
            _tile(
                query, q8, q_step, q_sum, output, signs, factor, sink_logits, begin,
                tl.load(query_start + request + 1) - begin,
                tl.load(one_of(c, lens, CLASSES) + request), tl.load(slots + request),
                tl.load(tiles + 2 * tile + 1), tl.load(order + nth),
                one_of(c, windows, CLASSES), one_of(c, reading, CLASSES), prompts,
                query_stride, q8_stride, scale_stride, output_stride, table,
                chosen(c, data, KINDS, DISTINCT[k], CLASSES), one_of(c, scales, CLASSES),
                block_stride, (nth - first) * head_stride, sink, block, round, scale,
                DISTINCT[k], SIZE, PADDED, HALF_WIDE, GROUP, WIDE_GROUP, ROWS, TOKENS, CAP,
                COMPUTES[k], PRECISIONS[k], HAS_SINKS, PARTS, STAGES,
            )  # fmt: skip
