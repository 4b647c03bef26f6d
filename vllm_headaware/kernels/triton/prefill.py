"""prefill: several queries a request, in tiles of queries and all query heads of a KV head."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton.attend import (
    NOTHING,
    fetch,
    find,
    load_queries,
    nothing_yet,
    spread,
    weigh,
)
from vllm_headaware.kernels.triton.classes import chosen, class_of, is_kind, numbers, one_of
from vllm_headaware.kernels.triton.load import (
    LOG2E,
    capped,
    channels,
    element,
    key_format,
    part_width,
    parts,
    quantised,
    value_format,
)
from vllm_headaware.kernels.triton.rotate import rotated
from vllm_headaware.kernels.triton.rule import GRANULE, first_seen, gap_before, window_at

COLUMNS = tl.constexpr(32)
"""Columns of the result that are rotated back at once."""


@triton.jit
def _meet(
    low, high, step, total, shown, most, least, sums, acc, fetched,
    MASKED: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, CAP: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile of keys and values to the running softmax of a tile of queries.

    Args:
        low, high, step, total: of load_queries.
        shown: of each query and token, if MASKED.
        most, sums: float32 [ROWS], largest logit, base 2, and sum of weights so far.
        least: float32 [ROWS], weighted middles of values so far (int4).
        acc: weighted values so far, see nothing_yet().
        fetched: of fetch().

    Returns:
        most, least, sums, acc.
    """
    keys, values, key_scale, key_low, value_scale, value_low = fetched
    if KEY == "int8":
        logits = tl.dot(low, tl.trans(keys), out_dtype=tl.int32).to(tl.float32)
        logits = logits * key_scale[None, :]
    elif KEY == "int4":
        products = tl.dot(low, tl.trans(keys & 15), out_dtype=tl.int32)
        products = tl.dot(high, tl.trans((keys >> 4) & 15), acc=products, out_dtype=tl.int32)
        logits = products.to(tl.float32) * key_scale[None, :] + total[:, None] * key_low[None, :]
    else:
        logits = tl.dot(low, tl.trans(keys.to(COMPUTE)), input_precision=PRECISION)
    if CAP > 0:
        logits = capped(logits * step[:, None], CAP)
        step = step * 0 + LOG2E
    # Steps are above 0, so that the largest product is that of the largest logit.
    if MASKED:
        logits = tl.where(shown, logits, float("-inf"))
    highest = tl.maximum(most, tl.max(logits, 1) * step)
    weights = tl.exp2(logits * step[:, None] - highest[:, None])
    shrink = tl.exp2(most - highest)
    sums = sums * shrink + tl.sum(weights, 1)
    if VALUE == "int4":
        least = least * shrink + tl.sum(weights * value_low[None, :], 1)
    if VALUE == "int4" or VALUE == "int8":
        weights = weights * value_scale[None, :]
    acc = weigh(weights.to(COMPUTE), values, acc, shrink, VALUE, PRECISION, TURNED=False)
    return highest, least, sums, acc


@triton.jit
def _walk(
    first, last, low, high, step, total, position, seen_from, state, end, gap, sink, table, data,
    halves, block_stride, head_offset, block, reciprocal,
    MASKED: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, SIZE: tl.constexpr,
    KEY_WIDE: tl.constexpr, CAP: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Meet the tiles from place `first` to before `last`, both multiples of TOKENS or the end.

    Args:
        position, seen_from: int32 [ROWS], place of each query, first token its window shows.
        state: most, least, sums and acc of _meet().
        MASKED: whether some query may not see some of the tokens.
    """
    most, least, sums, acc = state
    token_a, number_a, inside_a = find(first, end, gap, sink, table, block, reciprocal)
    token_b, number_b, inside_b = find(first + GRANULE, end, gap, sink, table, block, reciprocal)
    for base in tl.range(first, last, TOKENS, num_stages=STAGES):
        lane = tl.arange(0, TOKENS)
        seen = spread(token_a, token_b - GRANULE, TOKENS) + lane
        shown = (seen[None, :] <= position[:, None]) & (base + lane < end)[None, :]
        shown = shown & ((seen < sink)[None, :] | (seen[None, :] >= seen_from[:, None]))
        following = base + TOKENS
        a = find(following, end, gap, sink, table, block, reciprocal)
        b = find(following + GRANULE, end, gap, sink, table, block, reciprocal)
        fetched = fetch(
            base, end, number_a, inside_a, number_b, inside_b, data, halves, block_stride,
            head_offset, block, KEY, VALUE, SIZE, KEY_WIDE, TOKENS, TURNED=False,
        )  # fmt: skip
        most, least, sums, acc = _meet(
            low, high, step, total, shown, most, least, sums, acc, fetched,
            MASKED, KEY, VALUE, CAP, COMPUTE, PRECISION,
        )  # fmt: skip
        token_a, number_a, inside_a = a
        token_b, number_b, inside_b = b
    return most, least, sums, acc


@triton.jit
def _turn_back(
    acc, least, whole, output, to, asked, signs, factor,
    VALUE: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Rotate a tile of results, whose columns come in parts, and write it."""
    WIDE: tl.constexpr = part_width(VALUE, SIZE)
    column = tl.arange(0, WIDE)
    for base in range(0, SIZE, COLUMNS):
        target = base + tl.arange(0, COLUMNS)
        inside = (column < SIZE // parts(VALUE))[:, None] & (target < SIZE)[None, :]
        turned = tl.zeros((ROWS, COLUMNS), tl.float32)
        for part in tl.static_range(parts(VALUE)):
            source = channels(column, part, VALUE, SIZE)
            matrix = tl.load(signs + source[:, None] * SIZE + target[None, :], mask=inside, other=0)
            turned = rotated((acc[part] + least[:, None]) / whole, matrix, turned, PARTS)
        mask = asked[:, None] & (target < SIZE)[None, :]
        tl.store(output + to[:, None] + target[None, :], turned * factor, mask=mask)


@triton.jit
def _tile(
    query, q8, q_step, q_sum, output, signs, factor, sink_logits, begin, queries, length, slot,
    offset, head, windows, reading, prompts, query_stride, q8_stride, scale_stride,
    output_stride, table, data, scales, block_stride, head_offset, sink, block, round, reciprocal,
    scale,
    KIND: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, HALF_WIDE: tl.constexpr,
    GROUP: tl.constexpr, WIDE_GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    CAP: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, HAS_SINKS: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    KEY: tl.constexpr = key_format(KIND)
    VALUE: tl.constexpr = value_format(KIND)
    KEY_WIDE: tl.constexpr = HALF_WIDE if KEY == "int4" else PADDED
    row = tl.arange(0, ROWS)
    nth = offset + row // WIDE_GROUP
    asked = (nth < queries) & (row % WIDE_GROUP < GROUP)
    heads = head * GROUP + row % WIDE_GROUP
    token = begin + nth
    low, high, step, total = load_queries(
        query, q8, q_step, q_sum, token, heads, asked, query_stride, q8_stride, scale_stride,
        scale, KEY, SIZE, KEY_WIDE, CAP, COMPUTE, ROWS,
    )  # fmt: skip
    position = length - queries + nth
    seen_from = first_seen(position, window_at(position, slot, windows, reading, prompts), round)
    oldest = length - queries + offset
    start = first_seen(oldest, window_at(oldest, slot, windows, reading, prompts), round)
    gap = gap_before(start, sink)
    end = tl.minimum(oldest + ROWS // WIDE_GROUP, length) - gap
    most = tl.full((ROWS,), NOTHING, tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    if HAS_SINKS:
        most = tl.load(sink_logits + heads, mask=asked, other=0.0) * LOG2E
        sums = tl.where(asked, 1.0, 0.0)
    least = tl.zeros((ROWS,), tl.float32)
    acc = nothing_yet(VALUE, ROWS, part_width(VALUE, SIZE))
    # Between the last window's start and the first query's place all queries see all tokens.
    latest = tl.max(seen_from, 0)
    inner = tl.where(latest <= sink, 0, tl.cdiv(latest - gap, TOKENS) * TOKENS)
    outer = tl.maximum((oldest + 1 - gap) // TOKENS * TOKENS, inner)
    edges = (inner * 0, tl.minimum(inner, end), tl.minimum(outer, end), end)
    state = (most, least, sums, acc)
    for part in tl.static_range(3):
        state = _walk(
            edges[part], edges[part + 1], low, high, step, total, position, seen_from, state,
            end, gap, sink, table, data, scales, block_stride, head_offset, block, reciprocal,
            part != 1, KEY, VALUE, SIZE, KEY_WIDE, CAP, COMPUTE, PRECISION, TOKENS, STAGES,
        )  # fmt: skip
    most, least, sums, acc = state
    whole = tl.where(sums == 0, 1.0, sums)[:, None]
    to = token.to(tl.int64) * output_stride + heads * SIZE
    if quantised(KIND):
        _turn_back(acc, least, whole, output, to, asked, signs, factor, VALUE, SIZE, ROWS, PARTS)
    else:
        column = tl.arange(0, PADDED)
        mask = asked[:, None] & (column < SIZE)[None, :]
        tl.store(output + to[:, None] + column[None, :], acc[0] / whole, mask=mask)


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
    # Those that see most come first.
    tile = tl.load(tile_count) - 1 - tl.program_id(0)
    if tile < 0:
        return
    request = tl.load(tiles + 2 * tile)
    begin = tl.load(query_start + request)
    nth = tl.program_id(1)
    c = class_of(nth, layout, CLASSES)
    block_stride, head_stride, first, _, sink, block, round, reciprocal = numbers(c, layout)
    wide = one_of(c, table_strides, CLASSES)
    table = one_of(c, tables, CLASSES) + request.to(tl.int64) * wide
    for k in tl.static_range(len(DISTINCT)):
        if is_kind(c, KINDS, element(DISTINCT, k), CLASSES):
            _tile(
                query, q8, q_step, q_sum, output, signs, factor, sink_logits, begin,
                tl.load(query_start + request + 1) - begin,
                tl.load(one_of(c, lens, CLASSES) + request), tl.load(slots + request),
                tl.load(tiles + 2 * tile + 1), tl.load(order + nth),
                one_of(c, windows, CLASSES), one_of(c, reading, CLASSES), prompts,
                query_stride, q8_stride, scale_stride, output_stride, table,
                chosen(c, data, KINDS, element(DISTINCT, k), CLASSES), one_of(c, scales, CLASSES),
                block_stride, (nth - first) * head_stride, sink, block, round, reciprocal, scale,
                element(DISTINCT, k), SIZE, PADDED, HALF_WIDE, GROUP, WIDE_GROUP, ROWS, TOKENS, CAP,
                element(COMPUTES, k), element(PRECISIONS, k), HAS_SINKS, PARTS, STAGES,
            )  # fmt: skip
