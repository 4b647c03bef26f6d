"""The attention op of one layer: native kernels in every KV format against vLLM's own op.

    python -m benchmarks.bench_attention --json

Decoding, 9 query heads on 3 KV heads of 64, K/V write included on both sides. Caches are rotated so
that none is left in the processor's cache by the call before. Beside each time stand two floors:
  bytes        what must be read, at the read bandwidth measured in the same run
  arithmetic   multiply-adds, at the rate of a float32 matrix product in the same run; integer dot
               products do twice as many per instruction
and the distance to the larger of the two. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.stock_op import StockOp

KV_HEADS, GROUP, HEAD_SIZE, BLOCK = 3, 3, 64, 128
CASES = ((1, 512), (1, 1024), (8, 1024), (1, 8192), (8, 8192))
ROTATE_BYTES = 300e6
SECONDS = 1.5
SCALE = HEAD_SIZE**-0.5


def milliseconds(calls: list[Callable[[], Any]]) -> float:
    """Median time of a call, going round a list of equal ones."""
    for call in calls[:3]:
        call()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        call = calls[len(times) % len(calls)]
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def read_bandwidth() -> float:
    """Bytes per second of summing a buffer far larger than any cache."""
    x = torch.ones(1 << 28)
    return x.numel() * 4 / milliseconds([x.sum]) * 1e3


def multiply_add_rate() -> float:
    """Multiply-adds per second of a float32 matrix product."""
    x = torch.randn(1024, 1024)
    return 1024**3 / milliseconds([lambda: x @ x]) * 1e3


def rows(batch: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Query, key, value and output of one decode step."""
    heads = (KV_HEADS * GROUP, KV_HEADS, KV_HEADS, KV_HEADS * GROUP)
    return tuple(torch.randn(batch, h, HEAD_SIZE).to(dtype) for h in heads)


def tables(batch: int, context: int, copies: int) -> list[torch.Tensor]:
    """Block tables of `copies` separate batches."""
    width = -(-context // BLOCK)
    blocks = torch.arange(copies * batch * width, dtype=torch.int32)
    return list(blocks.view(copies, batch, width))


def native(kv_format: str, batch: int, context: int, instruction_set: str | None) -> float:
    """Milliseconds of the native kernels."""
    from vllm_headaware.kernels.cpu.attention import ClassCache, ClassStep, LayerAttention
    from vllm_headaware.kernels.formats import FORMATS

    token_bytes = FORMATS[kv_format].token_bytes(HEAD_SIZE)
    copies = max(int(ROTATE_BYTES / (batch * context * KV_HEADS * token_bytes)), 1)
    places = tables(batch, context, copies)
    count = copies * places[0].numel()
    raw = torch.zeros(count, KV_HEADS, BLOCK, token_bytes, dtype=torch.int8)
    layer = LayerAttention(
        num_query_heads=KV_HEADS * GROUP,
        num_kv_heads=KV_HEADS,
        head_size=HEAD_SIZE,
        scale=SCALE,
        io_dtype=torch.float32,
        classes=[ClassCache(raw, range(KV_HEADS), kv_format)],
        instruction_set=instruction_set,
    )
    q, k, v, out = rows(batch, torch.float32)
    lens = torch.full((batch,), context, dtype=torch.int32)
    keys = torch.randn(batch * context, KV_HEADS, HEAD_SIZE)
    starts = torch.arange(batch + 1, dtype=torch.int32) * context
    none = torch.zeros(batch * context, KV_HEADS * GROUP, HEAD_SIZE)
    layer(none, keys, keys, none, [ClassStep(starts, lens, places[0])])
    for place in places[1:]:
        raw[place.flatten()] = raw[places[0].flatten()]
    starts = torch.arange(batch + 1, dtype=torch.int32)
    steps = [[ClassStep(starts, lens, place)] for place in places]
    return milliseconds([lambda s=s: layer(q, k, v, out, s) for s in steps])  # type: ignore[misc]


def stock(batch: int, context: int, dtype: torch.dtype) -> float:
    """Milliseconds of vLLM's own write and attention ops."""
    size = batch * context * KV_HEADS * 2 * HEAD_SIZE * dtype.itemsize
    places = tables(batch, context, max(int(ROTATE_BYTES / size), 1))
    count = len(places) * places[0].numel()
    keys, values = torch.randn(count, KV_HEADS, 2 * BLOCK, HEAD_SIZE).to(dtype).chunk(2, dim=2)
    op = StockOp(keys, values, KV_HEADS * GROUP, SCALE)
    step = rows(batch, dtype)
    lens = torch.full((batch,), context, dtype=torch.int32)
    starts = torch.arange(batch + 1, dtype=torch.int32)
    schedule = op.schedule(starts, lens)

    def call(place: torch.Tensor) -> None:
        slots = place[:, -1].long() * BLOCK + (context - 1) % BLOCK
        op(step, slots, starts, lens, place, schedule)

    return milliseconds([lambda p=p: call(p) for p in places])  # type: ignore[misc]


def main() -> None:
    """Command line."""
    from vllm.platforms import current_platform

    from vllm_headaware.kernels.cpu.library import INSTRUCTION_SETS, find_kernel
    from vllm_headaware.kernels.formats import FORMATS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = [name for name in INSTRUCTION_SETS if find_kernel(name)]
    parser.add_argument("--instruction-set", choices=sets, default=sets[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object, and only that")
    args = parser.parse_args()
    current_platform.import_kernels()

    bandwidth, rate = read_bandwidth(), multiply_add_rate()
    result: dict[str, Any] = {
        "instruction_set": args.instruction_set,
        "threads": torch.get_num_threads(),
        "read_bytes_per_second": bandwidth,
        "multiply_adds_per_second": rate,
        "cases": [],
    }
    for batch, context in CASES:
        reference = stock(batch, context, torch.float32)
        case: dict[str, Any] = {
            "batch": batch,
            "context": context,
            "stock_float32_ms": reference,
            "stock_bfloat16_ms": stock(batch, context, torch.bfloat16),
            "native": {},
        }
        for name, kv_format in FORMATS.items():
            took = native(name, batch, context, args.instruction_set)
            tokens = batch * context * KV_HEADS
            by_bytes = tokens * kv_format.token_bytes(HEAD_SIZE) / bandwidth * 1e3
            products = tokens * GROUP * 2 * HEAD_SIZE
            by_arithmetic = products / rate / (2 if kv_format.quantised else 1) * 1e3
            case["native"][name] = {
                "ms": took,
                "over_stock_float32": reference / took,
                "floor_bytes_ms": by_bytes,
                "floor_arithmetic_ms": by_arithmetic,
                "over_floor": took / max(by_bytes, by_arithmetic),
            }
        result["cases"].append(case)
        if not args.json:
            show(case)
    print(json.dumps(result), flush=True)


def show(case: dict[str, Any]) -> None:
    """One case as a small table."""
    print(f"\nbatch {case['batch']}, context {case['context']:,}")
    print(f"  vLLM's op   float32 {case['stock_float32_ms']:8.3f} ms", end="")
    print(f"   bfloat16 {case['stock_bfloat16_ms']:8.3f} ms")
    for name, row in case["native"].items():
        binds = "bytes" if row["floor_bytes_ms"] > row["floor_arithmetic_ms"] else "arithmetic"
        print(
            f"  {name:10} {row['ms']:8.3f} ms, {row['over_stock_float32']:5.2f}x vLLM's float32,"
            f" {row['over_floor']:5.2f}x the floor ({binds})"
        )


if __name__ == "__main__":
    main()
