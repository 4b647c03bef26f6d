"""decode: one query a request. Pieces of requests are attended to by programs that walk the work
list; `merge` puts the pieces of a request together."""

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
from vllm_headaware.kernels.triton.classes import (
    FIELDS,
    chosen,
    is_kind,
    numbers,
    one_of,
)
from vllm_headaware.kernels.triton.load import (
    COUNTS,
    LOG2E,
    capped,
    channels,
    element,
    key_format,
    part_width,
    parts,
    value_format,
)
from vllm_headaware.kernels.triton.rule import GRANULE, gap_before
from vllm_headaware.kernels.triton.work import ITEM


@triton.jit
def _meet(
    low, high, step, total, shown, most, least, sums, acc, fetched,
    KEY: tl.constexpr, VALUE: tl.constexpr, CAP: tl.constexpr, COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile of keys and values to the running softmax of the query heads of a KV head.

    Heads are the columns of all products, tokens and channels the rows: matrix units have 16 rows,
    but only 8 columns, and there are few heads.

    Args:
        low, high, step, total: of load_queries.
        shown: of each token.
        most: float32 [ROWS], largest logit so far, base 2.
        least, sums: float32 [TOKENS, ROWS], weighted middles of values (int4) and weights so far,
            which are summed up over tokens at the end.
        acc: weighted values so far, see nothing_yet(); [part_width, ROWS].
        fetched: of fetch().

    Returns:
        most, least, sums, acc.
    """
    keys, values, key_scale, key_low, value_scale, value_low = fetched
    if KEY == "int8":
        logits = tl.dot(keys, tl.trans(low), out_dtype=tl.int32).to(tl.float32)
        logits = logits * key_scale[:, None]
    elif KEY == "int4":
        products = tl.dot(keys & 15, tl.trans(low), out_dtype=tl.int32)
        products = tl.dot((keys >> 4) & 15, tl.trans(high), acc=products, out_dtype=tl.int32)
        logits = products.to(tl.float32) * key_scale[:, None] + key_low[:, None] * total[None, :]
    else:
        logits = tl.dot(keys.to(COMPUTE), tl.trans(low), input_precision=PRECISION)
    if CAP > 0:
        logits = capped(logits * step[None, :], CAP)
        step = step * 0 + LOG2E
    # Steps are above 0, so that the largest product is that of the largest logit.
    logits = tl.where(shown[:, None], logits, float("-inf"))
    highest = tl.maximum(most, tl.max(logits, 0) * step)
    weights = tl.exp2(logits * step[None, :] - highest[None, :])
    shrink = tl.exp2(most - highest)
    sums = sums * shrink[None, :] + weights
    if VALUE == "int4":
        least = least * shrink[None, :] + weights * value_low[:, None]
    if VALUE == "int4" or VALUE == "int8":
        weights = weights * value_scale[:, None]
    acc = weigh(weights.to(COMPUTE), values, acc, shrink, VALUE, PRECISION, TURNED=True)
    return highest, least, sums, acc


@triton.jit
def _piece(
    query, q8, q_step, q_sum, token, begin, end, start, head, place,
    partial, partial_most, partial_sums, query_stride, q8_stride, scale_stride,
    table, data, halves, block_stride, head_offset, sink, block, reciprocal,
    scale,
    KIND: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, HALF_WIDE: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, CAP: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    KEY: tl.constexpr = key_format(KIND)
    VALUE: tl.constexpr = value_format(KIND)
    KEY_WIDE: tl.constexpr = HALF_WIDE if KEY == "int4" else PADDED
    row = tl.arange(0, ROWS)
    asked = row < GROUP
    low, high, step, total = load_queries(
        query, q8, q_step, q_sum, row * 0 + token, head * GROUP + row, asked,
        query_stride, q8_stride, scale_stride, scale, KEY, SIZE, KEY_WIDE, CAP, COMPUTE, ROWS,
    )  # fmt: skip
    gap = gap_before(start, sink)
    most = tl.full((ROWS,), NOTHING, tl.float32)
    least = tl.zeros((TOKENS, ROWS), tl.float32)
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    acc = nothing_yet(VALUE, part_width(VALUE, SIZE), ROWS)
    # Blocks are looked up a tile ahead: where a tile lies is known when it is asked for.
    token_a, number_a, inside_a = find(begin, end, gap, sink, table, block, reciprocal)
    token_b, number_b, inside_b = find(begin + GRANULE, end, gap, sink, table, block, reciprocal)
    for base in tl.range(begin, end, TOKENS, num_stages=STAGES):
        lane = tl.arange(0, TOKENS)
        seen = spread(token_a, token_b - GRANULE, TOKENS) + lane
        shown = (base + lane < end) & ((seen < sink) | (seen >= start))
        following = base + TOKENS
        a = find(following, end, gap, sink, table, block, reciprocal)
        b = find(following + GRANULE, end, gap, sink, table, block, reciprocal)
        fetched = fetch(
            base, end, number_a, inside_a, number_b, inside_b, data, halves, block_stride,
            head_offset, block, KEY, VALUE, SIZE, KEY_WIDE, TOKENS, TURNED=True,
        )  # fmt: skip
        most, least, sums, acc = _meet(
            low, high, step, total, shown, most, least, sums, acc, fetched,
            KEY, VALUE, CAP, COMPUTE, PRECISION,
        )  # fmt: skip
        token_a, number_a, inside_a = a
        token_b, number_b, inside_b = b
    WIDE: tl.constexpr = part_width(VALUE, SIZE)
    column = tl.arange(0, WIDE)
    at = place.to(tl.int64) * GROUP + row
    mask = (column < SIZE // parts(VALUE))[:, None] & asked[None, :]
    for part in tl.static_range(parts(VALUE)):
        to = (at * SIZE)[None, :] + channels(column, part, VALUE, SIZE)[:, None]
        tl.store(partial + to, acc[part] + tl.sum(least, 0)[None, :], mask=mask)
    tl.store(partial_most + at, most, mask=asked)
    tl.store(partial_sums + at, tl.sum(sums, 0), mask=asked)


@triton.jit(do_not_specialize=COUNTS)
def decode(
    query, q8, q_step, q_sum, order, layout, query_start, items, starts, num_requests,
    partial, partial_most, partial_sums, query_stride, q8_stride, scale_stride,
    tables, table_strides, data, scales, scale,
    KINDS: tl.constexpr, DISTINCT: tl.constexpr, CLASSES: tl.constexpr, SIZE: tl.constexpr,
    PADDED: tl.constexpr, HALF_WIDE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    TOKENS: tl.constexpr, CAP: tl.constexpr, COMPUTES: tl.constexpr, PRECISIONS: tl.constexpr,
    MOST_ITEMS: tl.constexpr, REQUESTS: tl.constexpr, STAGES: tl.constexpr,
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
        block_stride, head_stride, first, count, sink, block, _, reciprocal = numbers(c, layout)
        own = (pair - before) % count
        item = items + (c * MOST_ITEMS + (pair - before) // count) * ITEM
        request = tl.load(item)
        wide = one_of(c, table_strides, CLASSES)
        table = one_of(c, tables, CLASSES) + request.to(tl.int64) * wide
        for k in tl.static_range(len(DISTINCT)):
            if is_kind(c, KINDS, element(DISTINCT, k), CLASSES):
                _piece(
                    query, q8, q_step, q_sum, tl.load(query_start + request), tl.load(item + 1),
                    tl.load(item + 2), tl.load(item + 3), tl.load(order + first + own), pair,
                    partial, partial_most, partial_sums, query_stride, q8_stride, scale_stride,
                    table, chosen(c, data, KINDS, element(DISTINCT, k), CLASSES),
                    one_of(c, scales, CLASSES), block_stride, own * head_stride, sink, block,
                    reciprocal, scale, element(DISTINCT, k), SIZE, PADDED, HALF_WIDE, GROUP,
                    ROWS, TOKENS, CAP, element(COMPUTES, k), element(PRECISIONS, k), STAGES,
                )  # fmt: skip
