"""What decode and prefill share: queries, and one tile of keys and values that meets them."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton.load import LOG2E, capped, row_width, share_of, tile


@triton.jit
def load_queries(
    query, q8, q_step, q_sum, token, head, there, query_stride, q8_stride, scale_stride,
    KEY: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Query rows [ROWS, WIDE] for keys in two halves (the same twice but for int4), and, where
    they are rounded, their steps and the sums of their elements, float32 [ROWS]."""
    if KEY == "int8" or KEY == "int4":
        at = token * scale_stride + head
        step = tl.load(q_step + at, mask=there, other=0.0)
        total = tl.load(q_sum + at, mask=there, other=0.0)
        rows = token.to(tl.int64) * q8_stride + head * SIZE
        if KEY == "int4":
            low = tile(q8, rows, there, WIDE, SIZE // 2)
            high = tile(q8, rows + SIZE // 2, there, WIDE, SIZE // 2)
        else:
            low = tile(q8, rows, there, WIDE, SIZE)
            high = low
    else:
        step = tl.full((ROWS,), 1.0, tl.float32)
        total = step
        rows = token.to(tl.int64) * query_stride + head * SIZE
        low = tile(query, rows, there, WIDE, SIZE).to(COMPUTE)
        high = low
    return low, high, step, total


@triton.jit
def meet(
    low, high, step, total, position, seen_from, most, least, sums, first, second,
    visible, there, sinks, gap, sink, table, data, scales, block_stride, head_offset, block, scale,
    KEY: tl.constexpr, VALUE: tl.constexpr, SIZE: tl.constexpr, KEY_WIDE: tl.constexpr,
    VALUE_WIDE: tl.constexpr, CAP: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile of keys and values to the running softmax of a tile of queries.

    Args:
        low, high, step, total: of load_queries.
        position, seen_from: int32 [rows], place of each query, first token its window shows.
        most, sums: float32 [rows], largest logit and sum of weights so far, base 2.
        least: float32 [rows], weighted middles of values so far (int4).
        first, second: float32 [rows, VALUE_WIDE], weighted values so far, by halves.
        visible: int32 [tokens], places counted without the gap; there: which are any.
        sinks, gap: of rule.gap_before; sink: of the class.

    Returns:
        most, least, sums, first, second.
    """
    KEY_ROW: tl.constexpr = row_width(KEY, SIZE)
    VALUE_ROW: tl.constexpr = row_width(VALUE, SIZE)
    token = visible + tl.where(visible >= sinks, gap, 0)
    share, inside = share_of(token, there, table, block_stride, block)
    share = share + head_offset
    area = block * KEY_ROW
    keys = tile(data, share + inside * KEY_ROW, there, KEY_WIDE, KEY_ROW)
    if KEY == "int8" or KEY == "int4":
        place = (share + area + block * VALUE_ROW) // 2 + inside
        key_scale = tl.load(scales + place, mask=there, other=0).to(tl.float32)
        value_scale = tl.load(scales + place + block, mask=there, other=0).to(tl.float32)
    if KEY == "int8":
        products = tl.dot(low, tl.trans(keys), out_dtype=tl.int32).to(tl.float32)
        logits = products * step[:, None] * key_scale[None, :]
    elif KEY == "int4":
        lower = keys & 15
        upper = (keys >> 4) & 15
        products = tl.dot(low, tl.trans(lower), out_dtype=tl.int32)
        products = tl.dot(high, tl.trans(upper), acc=products, out_dtype=tl.int32)
        key_low = tl.load(scales + place + 2 * block, mask=there, other=0).to(tl.float32)
        logits = products.to(tl.float32) * key_scale[None, :] + total[:, None] * key_low[None, :]
        logits = logits * step[:, None]
    else:
        logits = tl.dot(low, tl.trans(keys.to(COMPUTE)), input_precision=PRECISION)
    logits = capped(logits * scale, CAP) * LOG2E
    shown = (token[None, :] <= position[:, None]) & there[None, :]
    shown = shown & ((token[None, :] < sink) | (token[None, :] >= seen_from[:, None]))
    logits = tl.where(shown, logits, float("-inf"))
    highest = tl.maximum(most, tl.max(logits, 1))
    safe = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(logits - safe[:, None])
    shrink = tl.exp2(most - safe)
    sums = sums * shrink + tl.sum(weights, 1)
    values = tile(data, share + area + inside * VALUE_ROW, there, VALUE_WIDE, VALUE_ROW)
    first = first * shrink[:, None]
    if VALUE == "int4":
        LOW: tl.constexpr = 3 if KEY == "int4" else 2
        value_low = tl.load(scales + place + LOW * block, mask=there, other=0).to(tl.float32)
        # Around their middle: were all of one sign, what a weight is rounded by would shift all
        # channels alike, and the rotation back would gather that in one of them.
        value_low += 8 * value_scale
        scaled = (weights * value_scale[None, :]).to(COMPUTE)
        lower_values = ((values & 15) - 8).to(COMPUTE)
        first = tl.dot(scaled, lower_values, acc=first, input_precision=PRECISION)
        second = second * shrink[:, None]
        upper_values = (((values >> 4) & 15) - 8).to(COMPUTE)
        second = tl.dot(scaled, upper_values, acc=second, input_precision=PRECISION)
        least = least * shrink + tl.sum(weights * value_low[None, :], 1)
    elif VALUE == "int8":
        scaled = (weights * value_scale[None, :]).to(COMPUTE)
        first = tl.dot(scaled, values.to(COMPUTE), acc=first, input_precision=PRECISION)
    else:
        weights_in = weights.to(COMPUTE)
        first = tl.dot(weights_in, values.to(COMPUTE), acc=first, input_precision=PRECISION)
    return highest, least, sums, first, second
