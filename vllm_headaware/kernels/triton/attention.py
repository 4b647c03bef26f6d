"""Paged attention of all head classes of a layer: store, then attention, in four launches at most.

The reference of this operation is vllm_headaware.kernels.reference. What a step needs is made once
and read by all layers (StepWork); nothing here waits for the device or depends on its data, so that
CUDA graphs can replay it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.kernels.triton.classes import reciprocal
from vllm_headaware.kernels.triton.decode import decode
from vllm_headaware.kernels.triton.merge import merge
from vllm_headaware.kernels.triton.prefill import prefill
from vllm_headaware.kernels.triton.shape import TL_DTYPES, Shape
from vllm_headaware.kernels.triton.store import store
from vllm_headaware.kernels.triton.support import GRANULE, why_not_triton
from vllm_headaware.kernels.triton.workspace import StepWork


@dataclass(frozen=True)
class ClassCache:
    """The blocks of one head class of one layer.

    Attributes:
        cache: any dtype [num_blocks, num_kv_heads, block_tokens, ...]; the last two dimensions
            dense, blocks and heads strided as they like. None where the class has no heads here.
        kv_heads: indices of the class's heads among the layer's KV heads.
        format: a name of FORMATS.
        block_tokens: tokens per block.
        sink: tokens, a multiple of block_tokens; 0 where the class has no window ever.
        exact: the window is the model's own: not rounded to blocks, and without sinks.
    """

    cache: torch.Tensor | None
    kv_heads: Sequence[int]
    format: str
    block_tokens: int
    sink: int = 0
    exact: bool = False


class LayerAttention:
    """The attention of one layer, ready to be called once per step.

    Args:
        num_query_heads, num_kv_heads, head_size: of the layer (of this rank).
        scale: factor on the logits.
        io_dtype: of query, key, value and output: float32, bfloat16 or float16.
        classes: caches of the head classes, which share out all KV heads.
        soft_cap: logits become cap x tanh(logits / cap); 0: they stay.
        sink_logits: float32 [num_query_heads], logits that no value belongs to; None: none.

    Raises:
        ValueError: shapes or dtypes the kernels do not have.
    """

    def __init__(
        self,
        *,
        num_query_heads: int,
        num_kv_heads: int,
        head_size: int,
        scale: float,
        io_dtype: torch.dtype,
        classes: Sequence[ClassCache],
        soft_cap: float = 0.0,
        sink_logits: torch.Tensor | None = None,
    ) -> None:
        if io_dtype not in TL_DTYPES:
            raise ValueError(f"dtype {io_dtype} is not one of {', '.join(map(str, TL_DTYPES))}")
        if num_query_heads % num_kv_heads:
            raise ValueError(f"{num_query_heads} query heads on {num_kv_heads} KV heads")
        group = num_query_heads // num_kv_heads
        if reason := why_not_triton(head_size, group):
            raise ValueError(f"the Triton kernels cannot serve this layer: {reason}")
        if sorted(h for c in classes for h in c.kv_heads) != list(range(num_kv_heads)):
            raise ValueError("the classes must share out all KV heads, each once")
        for c in classes:
            if c.block_tokens % GRANULE or c.sink % c.block_tokens:
                raise ValueError(
                    f"block of {c.block_tokens} tokens and sink of {c.sink}: a block must be a"
                    f" multiple of {GRANULE} tokens, and the sink a multiple of the block"
                )
        self.shape = Shape(
            kinds=tuple(c.format for c in classes),
            size=head_size,
            group=group,
            io=io_dtype,
            soft_cap=soft_cap,
            has_sinks=sink_logits is not None,
        )
        self.scale, self.num_kv_heads, self.sink_logits = scale, num_kv_heads, sink_logits
        device = next(c.cache.device for c in classes if c.cache is not None)
        order = [head for c in classes for head in c.kv_heads]
        self.order = torch.tensor(order, dtype=torch.int32, device=device)
        views = [_views(c, device) for c in classes]
        self.data = tuple(view[0] for view in views)
        self.scales = tuple(view[1] for view in views)
        rows, first = [], 0
        for c, (_, _, block_stride, head_stride) in zip(classes, views, strict=True):
            sink, round_to = (0, 1) if c.exact else (c.sink, c.block_tokens)
            count = len(c.kv_heads)
            size = c.block_tokens
            numbers = [block_stride, head_stride, first, count, sink, size, round_to]
            rows.append([*numbers, reciprocal(size)])
            first += count
        self.layout = torch.tensor(rows, dtype=torch.int64, device=device)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        work: StepWork,
    ) -> None:
        """Write K and V of the step's tokens into their blocks, attend, fill output.

        Args:
            query, output: [num_tokens, num_query_heads, head_size], tokens strided as they like.
            key, value: [num_tokens, num_kv_heads, head_size], likewise.
            work: of this step; its room is for this shape.
        """
        shape, room, steps = self.shape, work.room, work.steps
        num_tokens, num_requests = query.shape[0], steps[0].seq_lens.shape[0]
        if num_tokens > room.q8.shape[0] or num_requests > room.max_requests:
            raise ValueError(
                f"{num_tokens} tokens of {num_requests} requests, but the workspace is for"
                f" {room.q8.shape[0]} of {room.max_requests}"
            )
        lens = tuple(s.seq_lens for s in steps)
        tables = tuple(s.block_table for s in steps)
        table_strides = tuple(s.block_table.stride(0) for s in steps)
        sinks = room.partial_most if self.sink_logits is None else self.sink_logits
        starts = steps[0].query_start
        common = {"KINDS": shape.kinds, "CLASSES": len(steps), "SIZE": shape.size}
        common |= {"PADDED": shape.padded, "GROUP": shape.group}
        store[
            triton.cdiv(num_tokens, 32),
            self.num_kv_heads * (2 + shape.group * shape.quantised),
        ](
            query, key, value, room.q8, room.q_step, room.q_sum, room.signs, room.factor,
            self.order, self.layout, starts, num_tokens, num_requests, query.stride(0),
            key.stride(0), value.stride(0), room.q8.stride(0), room.q_step.stride(0),
            lens, tables, table_strides, self.data, self.scales, self.num_kv_heads,
            DISTINCT=shape.distinct, HALF_WIDE=shape.half_wide, STEPS=room.search_steps,
            PARTS=shape.parts_in, num_warps=4, **common,
        )  # fmt: skip
        attended = common | {
            "DISTINCT": shape.distinct,
            "HALF_WIDE": shape.half_wide,
            "CAP": shape.soft_cap,
            "COMPUTES": shape.computes,
            "PRECISIONS": shape.precisions,
        }
        if work.reads:
            most_tiles = min(num_tokens // shape.queries + num_requests, room.tiles.shape[0])
            prefill[most_tiles, self.num_kv_heads](
                query, room.q8, room.q_step, room.q_sum, output, room.signs, room.factor, sinks,
                self.order, self.layout, starts, work.prompts, work.slots, room.tiles,
                room.tile_count, query.stride(0), room.q8.stride(0), room.q_step.stride(0),
                output.stride(0), lens, work.windows, work.reading, tables, table_strides,
                self.data, self.scales, self.scale,
                WIDE_GROUP=shape.wide_group, ROWS=shape.rows, TOKENS=shape.tile_tokens,
                HAS_SINKS=shape.has_sinks, PARTS=shape.parts_out, STAGES=2,
                num_warps=shape.warps, **attended,
            )  # fmt: skip
        most_items = num_requests * self.num_kv_heads * room.most_pieces
        decode[(min(room.programs, most_items),)](
            query, room.q8, room.q_step, room.q_sum, self.order, self.layout, starts, room.items,
            room.starts, num_requests, room.partial, room.partial_most, room.partial_sums,
            query.stride(0), room.q8.stride(0), room.q_step.stride(0), tables, table_strides,
            self.data, self.scales, self.scale,
            ROWS=shape.decode_rows, TOKENS=shape.decode_tokens, MOST_ITEMS=room.items.shape[1],
            REQUESTS=room.requests, STAGES=shape.decode_stages,
            num_warps=shape.decode_warps, maxnreg=shape.decode_registers, **attended,
        )  # fmt: skip
        merge[num_requests, self.num_kv_heads](
            output, room.partial, room.partial_most, room.partial_sums, self.order, self.layout,
            starts, room.starts, room.signs, room.factor, sinks, num_requests, output.stride(0),
            WIDE_GROUP=shape.wide_group, REQUESTS=room.requests, HAS_SINKS=shape.has_sinks,
            PARTS=shape.parts_out, PRECISION=shape.merge_precision, num_warps=4, **common,
        )  # fmt: skip


def _views(c: ClassCache, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """A class's blocks as elements and as 16-bit elements, and the strides of the former."""
    if c.cache is None:
        nothing = _nothing(device, c.format)
        return nothing, nothing.view(torch.bfloat16), 0, 0
    cache, kv_format = c.cache, FORMATS[c.format]
    dtype = torch.int8 if kv_format.quantised else getattr(torch, c.format)
    size = cache.element_size()
    start, width = cache.storage_offset() * size, torch.empty(0, dtype=dtype).element_size()
    storage = cache.untyped_storage()
    strides = cache.stride(0) * size, cache.stride(1) * size
    if start % 64 or strides[0] % 64 or strides[1] % 64:
        raise ValueError(f"blocks begin at byte {start} and every {strides} bytes, not at 64")

    def view(element: torch.dtype) -> torch.Tensor:
        bytes_each = torch.empty(0, dtype=element).element_size()
        count = (storage.nbytes() - start) // bytes_each
        return torch.empty(0, dtype=element, device=device).set_(
            storage, start // bytes_each, (count,), (1,)
        )

    return view(dtype), view(torch.bfloat16), strides[0] // width, strides[1] // width


@functools.cache
def _nothing(device: torch.device, kv_format: str) -> torch.Tensor:
    dtype = torch.int8 if FORMATS[kv_format].quantised else getattr(torch, kv_format)
    return torch.zeros(64, dtype=dtype, device=device)
