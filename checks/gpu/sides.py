"""One attention layer as each side stores and attends it, at random contents.

Every side holds several layers' blocks, more than caches keep, and is called once for each.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from checks.gpu.shapes import Geometry, Load
from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.kernels.triton.attention import ClassCache, LayerAttention
from vllm_headaware.kernels.triton.work import PIECE
from vllm_headaware.kernels.triton.workspace import ClassStep, StepWork, Workspace

ENOUGH_BYTES = 2**28
"""Blocks of all layers take at least so much, which is more than any GPU's L2 cache."""
MOST_LAYERS = 16
STOCK_BLOCK = 16


class Inputs:
    """What a step brings: the last `queries` tokens of every request."""

    def __init__(self, g: Geometry, load: Load, queries: int, dtype: torch.dtype) -> None:
        self.load, self.queries = load, queries
        count = load.requests * queries
        self.query = torch.randn(count, g.query_heads, g.head_size, dtype=dtype)
        self.key, self.value = (
            torch.randn(count, g.kv_heads, g.head_size, dtype=dtype) for _ in range(2)
        )
        self.output = torch.empty_like(self.query)
        self.starts = torch.arange(0, count + 1, queries, dtype=torch.int32)
        self.lens = torch.full((load.requests,), load.tokens, dtype=torch.int32)

    def tables(self, block: int) -> tuple[torch.Tensor, int]:
        """A block table in random order, and how many blocks it names."""
        wide = -(-self.load.tokens // block)
        count = self.load.requests * wide
        return torch.randperm(count, dtype=torch.int32).view(self.load.requests, wide), count


class Ours:
    """Head classes on the Triton kernels."""

    def __init__(
        self,
        g: Geometry,
        inputs: Inputs,
        kinds: tuple[str, str],
        retrieval: int,
        piece: int = PIECE,
    ) -> None:
        """Args: kinds: KV formats of the class that keeps everything and of the windowed one.
        retrieval: heads of the former; 0 and all make one class."""
        self.inputs = inputs
        heads = list(range(g.kv_heads))
        shares = [
            (kinds[0], heads[:retrieval], g.retrieval_block, 0, None),
            (kinds[1], heads[retrieval:], g.local_block, g.sink, g.window),
        ]
        shares = [share for share in shares if share[1]]
        tables = [inputs.tables(block) for _, _, block, _, _ in shares]
        self.bytes_read = sum(
            len(own)
            * _read(inputs.load, block, sink, window)
            * FORMATS[kind].token_bytes(g.head_size)
            for kind, own, block, sink, window in shares
        )

        def layer() -> LayerAttention:
            return LayerAttention(
                num_query_heads=g.query_heads,
                num_kv_heads=g.kv_heads,
                head_size=g.head_size,
                scale=g.head_size**-0.5,
                io_dtype=inputs.query.dtype,
                classes=[
                    ClassCache(_blocks(kind, count, len(own), block, g), own, kind, block,
                               -(-sink // block) * block)
                    for (kind, own, block, sink, _), (_, count) in zip(shares, tables, strict=True)
                ],
            )  # fmt: skip

        self.layers = [layer() for _ in range(_layers(self.bytes_read))]
        self.room = Workspace(
            max_requests=inputs.load.requests,
            max_tokens=inputs.query.shape[0],
            max_length=inputs.load.tokens,
            num_query_heads=g.query_heads,
            num_kv_heads=g.kv_heads,
            head_size=g.head_size,
            num_classes=len(shares),
            device=inputs.query.device,
            piece=piece,
        )
        self.steps = [
            ClassStep(inputs.starts, inputs.lens, table, window=window)
            for (*_, window), (table, _) in zip(shares, tables, strict=True)
        ]
        self.work = self.list_work()

    def list_work(self) -> StepWork:
        """What is done once a step for all layers."""
        first = self.layers[0]
        return StepWork(
            self.room, first.shape, first.layout, self.steps, max_queries=self.inputs.queries
        )

    def __call__(self) -> None:
        i = self.inputs
        for layer in self.layers:
            layer(i.query, i.key, i.value, i.output, self.work)


class Stock:
    """FlashAttention 3 over 16-bit blocks, as vLLM calls it; where it is not, its Triton kernel."""

    def __init__(self, g: Geometry, inputs: Inputs) -> None:
        self.inputs, self.scale = inputs, g.head_size**-0.5
        self.table, count = inputs.tables(STOCK_BLOCK)
        row = g.kv_heads * 2 * g.head_size * 2
        self.bytes_read = inputs.load.requests * inputs.load.tokens * row
        self.one = torch.ones(1, dtype=torch.float32)
        self.on_gpu = torch.cuda.is_available()
        self.slots = _slots(inputs, self.table, STOCK_BLOCK)
        self.layers = [
            torch.randn(2, count, STOCK_BLOCK, g.kv_heads, g.head_size, dtype=inputs.query.dtype)
            for _ in range(_layers(self.bytes_read))
        ]
        self.attend = _flash_attention if self.on_gpu else _unified_attention

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the step's rows, with vLLM's kernel where there is a GPU."""
        i = self.inputs
        if not self.on_gpu:
            keys.view(-1, *i.key.shape[1:])[self.slots] = i.key
            values.view(-1, *i.key.shape[1:])[self.slots] = i.value
            return
        from vllm.v1.attention.ops.triton_reshape_and_cache_flash import (
            triton_reshape_and_cache_flash,
        )

        triton_reshape_and_cache_flash(
            i.key, i.value, keys, values, self.slots, "auto", self.one, self.one
        )

    def __call__(self) -> None:
        for keys, values in self.layers:
            self.store(keys, values)
            self.attend(self, keys, values)


class PerTokenHead:
    """vLLM's own quantised caches with a scale for each token and head, by its Triton backend."""

    def __init__(self, g: Geometry, inputs: Inputs, bits: int) -> None:
        from vllm.v1.attention.ops.triton_reshape_and_cache_flash import (
            triton_reshape_and_cache_flash_per_token_head_quant,
        )
        from vllm.v1.kv_cache_interface import KVQuantMode

        self.inputs, self.scale = inputs, g.head_size**-0.5
        self.store = triton_reshape_and_cache_flash_per_token_head_quant
        self.mode = KVQuantMode[f"INT{bits}_PER_TOKEN_HEAD"]
        dtype = torch.int8 if bits == 8 else torch.uint8
        width = g.head_size * bits // 8
        self.table, count = inputs.tables(STOCK_BLOCK)
        self.slots = _slots(inputs, self.table, STOCK_BLOCK)
        tokens = inputs.load.requests * inputs.load.tokens
        self.bytes_read = tokens * g.kv_heads * 2 * (width + 4)
        self.layers = []
        for _ in range(_layers(self.bytes_read)):
            data = torch.randint(0, 100, (2, count, STOCK_BLOCK, g.kv_heads, width), dtype=dtype)
            scales = torch.full((2, count, STOCK_BLOCK, g.kv_heads), 0.01)
            self.layers.append((data, scales))

    def __call__(self) -> None:
        i = self.inputs
        for (keys, values), (k_scale, v_scale) in self.layers:
            self.store(i.key, i.value, keys, values, k_scale, v_scale, self.slots,
                       kv_quant_mode=self.mode)  # fmt: skip
            _unified_attention(
                self, keys, values, kv_quant_mode=self.mode, k_scale_cache=k_scale,
                v_scale_cache=v_scale,
            )  # fmt: skip


def _read(load: Load, block: int, sink: int, window: int | None) -> int:
    """Tokens that the queries of a decode step read of a head's history."""
    if window is None:
        return load.requests * load.tokens
    return load.requests * min(load.tokens, -(-sink // block) * block + window)


def _layers(bytes_each: int) -> int:
    if not torch.cuda.is_available():
        return 1
    return min(max(ENOUGH_BYTES // bytes_each, 1), MOST_LAYERS)


def _blocks(kind: str, count: int, heads: int, block: int, g: Geometry) -> torch.Tensor:
    kv_format = FORMATS[kind]
    size = kv_format.token_bytes(g.head_size)
    if not kv_format.quantised:
        dtype = getattr(torch, kind)
        width = size // torch.empty(0, dtype=dtype).element_size()
        return torch.randn(count, heads, block, width, dtype=dtype)
    # Bytes up to 63: whatever they mean as scales, it is a small number.
    return torch.randint(0, 64, (count, heads, block, size), dtype=torch.int8)


def _slots(inputs: Inputs, table: torch.Tensor, block: int) -> torch.Tensor:
    at = torch.arange(inputs.load.tokens - inputs.queries, inputs.load.tokens)
    return (table[:, at // block].long() * block + at % block).flatten()


def _flash_attention(side: Stock, keys: torch.Tensor, values: torch.Tensor) -> None:
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    i = side.inputs
    flash_attn_varlen_func(
        q=i.query, k=keys, v=values, out=i.output, cu_seqlens_q=i.starts,
        max_seqlen_q=i.queries, seqused_k=i.lens, max_seqlen_k=i.load.tokens,
        softmax_scale=side.scale, causal=True, block_table=side.table, fa_version=3,
    )  # fmt: skip


def _unified_attention(side: Any, keys: Any, values: Any, **quantised: Any) -> None:
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention

    i = side.inputs
    unified_attention(
        q=i.query, k=keys, v=values, out=i.output, cu_seqlens_q=i.starts, max_seqlen_q=i.queries,
        seqused_k=i.lens, max_seqlen_k=i.load.tokens, softmax_scale=side.scale, causal=True,
        window_size=(-1, -1), block_table=side.table, softcap=0, q_descale=None, k_descale=None,
        v_descale=None, **_segments(i.query), **quantised,
    )  # fmt: skip


@functools.cache
def _segment_room(heads: int, head_size: int) -> dict[str, Any]:
    """Room for split decoding, of the size that vLLM's Triton backend takes."""
    rows, segments = 128, 16
    return {
        "seq_threshold_3D": rows // 8,
        "num_par_softmax_segments": segments,
        "softmax_segm_output": torch.empty(rows, heads, segments, head_size, dtype=torch.float32),
        "softmax_segm_max": torch.empty(rows, heads, segments, dtype=torch.float32),
        "softmax_segm_expsum": torch.empty(rows, heads, segments, dtype=torch.float32),
    }


def _segments(query: torch.Tensor) -> dict[str, Any]:
    return _segment_room(*query.shape[1:])
