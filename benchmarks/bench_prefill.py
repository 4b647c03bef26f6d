"""Prefill attention of a whole model: native kernels against vLLM's own op.

    python -m benchmarks.bench_prefill --json

One prompt is read in chunks by the attention ops alone, K/V write included on both sides. One layer
of each head class is timed with all its KV heads in that class, and counted as often as the default
shares give a model of 30 layers such heads. Queries, keys and values are noise. The last line on
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from bench_attention import BLOCK, GROUP, HEAD_SIZE, KV_HEADS, SCALE
from tqdm import tqdm

from benchmarks.stock_op import StockOp
from vllm_headaware.config import KVPolicyConfig

LAYERS = 30
ROUNDS = 3
"""Every class of every format is timed once in each round; the median is kept."""


def head_classes() -> dict[str, tuple[float, int, int | None]]:
    """Share of the heads, sinks and window of the default policy's classes, in tokens."""
    policy = KVPolicyConfig("headaware")
    sink = -(-policy.sink // BLOCK) * BLOCK
    local = 1 - policy.retrieval_share - policy.induction_share
    return {
        "retrieval": (policy.retrieval_share, 0, None),
        "induction": (policy.induction_share, sink, policy.induction_window),
        "local": (local, sink, policy.window),
    }


class Prompt:
    """Rows of one prompt in one layer, and the chunks it is read in."""

    def __init__(self, tokens: int, chunk: int) -> None:
        self.query = torch.randn(tokens, KV_HEADS * GROUP, HEAD_SIZE)
        self.key, self.value = torch.randn(2, tokens, KV_HEADS, HEAD_SIZE)
        self.output = torch.zeros_like(self.query)
        self.table = torch.arange(-(-tokens // BLOCK), dtype=torch.int32)[None]
        self.chunks = [range(at, min(at + chunk, tokens)) for at in range(0, tokens, chunk)]

    def rows(self, chunk: range) -> tuple[torch.Tensor, ...]:
        """Query, key, value and output of a chunk."""
        every = (self.query, self.key, self.value, self.output)
        return tuple(rows[chunk.start : chunk.stop] for rows in every)

    def milliseconds(self, read: Callable[[range], None]) -> float:
        """Time of reading every chunk once."""
        start = time.perf_counter()
        for chunk in self.chunks:
            read(chunk)
        return (time.perf_counter() - start) * 1e3


def native(
    prompt: Prompt, kv_format: str, sink: int, window: int | None, instruction_set: str
) -> Callable[[range], None]:
    """Reads a chunk with the native kernels."""
    from vllm_headaware.kernels.cpu.attention import ClassCache, ClassStep, LayerAttention
    from vllm_headaware.kernels.formats import FORMATS

    token_bytes = FORMATS[kv_format].token_bytes(HEAD_SIZE)
    raw = torch.zeros(prompt.table.numel(), KV_HEADS, BLOCK, token_bytes, dtype=torch.int8)
    layer = LayerAttention(
        num_query_heads=KV_HEADS * GROUP,
        num_kv_heads=KV_HEADS,
        head_size=HEAD_SIZE,
        scale=SCALE,
        io_dtype=torch.float32,
        classes=[ClassCache(raw, range(KV_HEADS), kv_format, sink, window)],
        instruction_set=instruction_set,
    )

    def read(chunk: range) -> None:
        starts = torch.tensor([0, len(chunk)], dtype=torch.int32)
        step = ClassStep(starts, torch.tensor([chunk.stop], dtype=torch.int32), prompt.table)
        q, k, v, out = prompt.rows(chunk)
        layer(q, k, v, out, [step])

    return read


def stock(prompt: Prompt) -> Callable[[range], None]:
    """Reads a chunk with vLLM's own write and attention ops, in float32."""
    cache = torch.zeros(prompt.table.numel(), KV_HEADS, 2 * BLOCK, HEAD_SIZE)
    keys, values = cache.chunk(2, dim=2)
    op = StockOp(keys, values, KV_HEADS * GROUP, SCALE)

    def read(chunk: range) -> None:
        starts = torch.tensor([0, len(chunk)], dtype=torch.int32)
        lens = torch.tensor([chunk.stop], dtype=torch.int32)
        # Blocks of the prompt lie in order, so a token's slot is its position.
        slots = torch.arange(chunk.start, chunk.stop)
        op(prompt.rows(chunk), slots, starts, lens, prompt.table, op.schedule(starts, lens))

    return read


def measure(prompt: Prompt, sets: Sequence[str], formats: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of the whole model: `stock`, and by instruction set and format."""
    classes = head_classes()
    readers: dict[tuple[str, ...], Callable[[range], None]] = {("stock",): stock(prompt)}
    for name in sets:
        for kv_format in formats:
            for kind, (_, sink, window) in classes.items():
                readers[name, kv_format, kind] = native(prompt, kv_format, sink, window, name)
    times: dict[tuple[str, ...], list[float]] = {key: [] for key in readers}
    for key in tqdm(list(readers) * ROUNDS, desc="reading prompts", unit="prompt", disable=None):
        times[key].append(prompt.milliseconds(readers[key]))
    took = {key: statistics.median(values) for key, values in times.items()}
    return {
        "stock_ms": LAYERS * took["stock",],
        "native_ms": {
            name: {
                f: LAYERS * sum(share * took[name, f, k] for k, (share, _, _) in classes.items())
                for f in formats
            }
            for name in sets
        },
    }


def main() -> None:
    """Command line."""
    from vllm.platforms import current_platform

    from vllm_headaware.kernels.cpu.library import INSTRUCTION_SETS, find_kernel
    from vllm_headaware.kernels.formats import FORMATS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = [name for name in INSTRUCTION_SETS[:-1] if find_kernel(name)] or ["baseline"]
    parser.add_argument("--tokens", type=int, default=8192, help="length of the prompt")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens read at a time")
    parser.add_argument("--instruction-set", nargs="*", choices=INSTRUCTION_SETS, default=sets)
    parser.add_argument("--json", action="store_true", help="print one JSON object, and only that")
    args = parser.parse_args()
    current_platform.import_kernels()
    result = {
        "tokens": args.tokens,
        "chunk": args.chunk,
        "threads": torch.get_num_threads(),
        **measure(Prompt(args.tokens, args.chunk), args.instruction_set, list(FORMATS)),
    }
    if not args.json:
        print(f"vLLM's op, float32: {result['stock_ms']:,.0f} ms")
        for name, by_format in result["native_ms"].items():
            for kv_format, took in by_format.items():
                ratio = result["stock_ms"] / took
                print(f"{name:8} {kv_format:10} {took:8,.0f} ms, {ratio:5.2f}x vLLM's float32")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
