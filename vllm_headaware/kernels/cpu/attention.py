"""Paged attention of all head classes of a layer in one call: K/V write, attention, merge.

The reference of this operation is vllm_headaware.kernels.reference; how elements lie in a block is
in formats.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_headaware.kernels.cpu.library import (
    FORMAT_CODES,
    IO_CODES,
    HaCall,
    HaClass,
    HaLayer,
    HaRows,
    HaStep,
    find_kernel,
)
from vllm_headaware.kernels.cpu.support import GRANULE, why_not_native


@dataclass(frozen=True)
class ClassCache:
    """The blocks of one head class of one layer.

    Attributes:
        cache: any dtype [num_blocks, num_kv_heads, block_tokens, ...]; the last two dimensions
            dense, blocks and heads strided as they like.
        kv_heads: indices of the class's heads among the layer's KV heads.
        format: a name of FORMATS.
        sink: tokens, a multiple of block_tokens; 0 where window is None.
        window: tokens, or None for an unlimited class.
        exact: the window is the model's own: not rounded to blocks, and without sinks.
    """

    cache: torch.Tensor
    kv_heads: Sequence[int]
    format: str
    sink: int = 0
    window: int | None = None
    exact: bool = False


class ClassStep:
    """The requests of a step as one head class sees them.

    Args:
        query_start: int32 [num_requests + 1], offsets into the step's tokens.
        seq_lens: int32 [num_requests], tokens of each request, this step's queries included.
        block_table: int32 [num_requests, width], rows strided; entries of hidden blocks are never
            read.
        windows: int32 [num_requests], tokens; 0 or less: everything from token -window on, and the
            sinks. None: the class's own for all.
        reading_windows: int32 [num_requests], the same for queries of a prompt; None: as windows.
        prompt_lens: int32 [num_requests], tokens: earlier queries are of the prompt. None: no query
            is.
        mass: float32, shape and strides of block_table; each call adds the attention weights that
            fell on a block, summed over the class's query heads and the step's queries. None: not
            measured.

    Raises:
        ValueError: a tensor of another dtype or shape.
    """

    def __init__(
        self,
        query_start: torch.Tensor,
        seq_lens: torch.Tensor,
        block_table: torch.Tensor,
        windows: torch.Tensor | None = None,
        reading_windows: torch.Tensor | None = None,
        prompt_lens: torch.Tensor | None = None,
        mass: torch.Tensor | None = None,
    ) -> None:
        by_request = (windows, reading_windows, prompt_lens)
        for tensor in (query_start, seq_lens, block_table, *by_request):
            if tensor is not None and (tensor.dtype != torch.int32 or tensor.stride(-1) != 1):
                raise ValueError("all of a step but mass must be dense int32")
        for tensor in by_request:
            if tensor is not None and tensor.shape != seq_lens.shape:
                raise ValueError(
                    f"{tensor.shape[0]} windows or prompt lengths for {seq_lens.shape[0]} requests"
                )
        if mass is not None and (
            mass.dtype != torch.float32
            or mass.shape != block_table.shape
            or mass.stride() != block_table.stride()
        ):
            raise ValueError("mass must be float32 and lie as block_table does")
        # Kept alive as long as the struct.
        self.tensors = (query_start, seq_lens, block_table, *by_request, mass)
        self.struct = HaStep(
            query_start.data_ptr(),
            seq_lens.data_ptr(),
            block_table.data_ptr(),
            block_table.stride(0),
            seq_lens.shape[0],
            *(None if tensor is None else tensor.data_ptr() for tensor in by_request),
            None if mass is None else mass.data_ptr(),
        )
        self.pointer = ctypes.pointer(self.struct)


class LayerAttention:
    """The attention of one layer, ready to be called once per step.

    Args:
        num_query_heads, num_kv_heads, head_size: of the layer (of this rank).
        scale: factor on the logits.
        io_dtype: of query, key, value and output: float32, bfloat16 or float16.
        classes: caches of the head classes, which share out all KV heads.
        soft_cap: logits become cap x tanh(logits / cap); 0: they stay.
        sink_logits: float32 [num_query_heads], logits that no value belongs to; None: none.
        instruction_set: see library.find_kernel.

    Raises:
        ValueError: shapes or dtypes the kernel does not have.
        RuntimeError: the machine lacks the instruction set asked for.
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
        instruction_set: str | None = None,
    ) -> None:
        if io_dtype not in IO_CODES:
            raise ValueError(f"dtype {io_dtype} is not one of {', '.join(map(str, IO_CODES))}")
        if num_query_heads % num_kv_heads:
            raise ValueError(f"{num_query_heads} query heads on {num_kv_heads} KV heads")
        if reason := why_not_native(head_size, num_query_heads // num_kv_heads):
            raise ValueError(f"the native kernels cannot serve this layer: {reason}")
        if sorted(h for c in classes for h in c.kv_heads) != list(range(num_kv_heads)):
            raise ValueError("the classes must share out all KV heads, each once")
        kernel = find_kernel(instruction_set)
        if kernel is None:
            raise RuntimeError(f"this machine cannot run the {instruction_set} kernels")
        self._kernel: Callable[[Any], None] = kernel
        if sink_logits is not None and (
            sink_logits.shape != (num_query_heads,) or sink_logits.dtype != torch.float32
        ):
            raise ValueError(f"sink logits must be float32 [{num_query_heads}]")
        self._keep: list[Any] = [*(c.cache for c in classes), sink_logits]
        structs = (HaClass * len(classes))(*(self._class_struct(c) for c in classes))
        layer = HaLayer(
            structs,
            len(classes),
            num_query_heads,
            num_kv_heads,
            head_size,
            IO_CODES[io_dtype],
            scale,
            soft_cap,
            None if sink_logits is None else sink_logits.data_ptr(),
        )
        self._keep += [structs, layer]
        self._steps = (ctypes.POINTER(HaStep) * len(classes))()
        self._call = HaCall(ctypes.pointer(layer), self._steps)
        self._call_address = ctypes.addressof(self._call)

    def _class_struct(self, c: ClassCache) -> HaClass:
        block_tokens, size = c.cache.shape[2], c.cache.element_size()
        if block_tokens % GRANULE or c.sink % block_tokens:
            raise ValueError(
                f"block of {block_tokens} tokens and sink of {c.sink}: a block must be a multiple"
                f" of {GRANULE} tokens, and the sink a multiple of the block"
            )
        heads = (ctypes.c_int32 * len(c.kv_heads))(*c.kv_heads)
        self._keep.append(heads)
        return HaClass(
            c.cache.data_ptr(),
            c.cache.stride(0) * size,
            c.cache.stride(1) * size,
            heads,
            len(c.kv_heads),
            block_tokens,
            FORMAT_CODES[c.format],
            0 if c.exact else c.sink,
            c.window or 0,
            c.exact,
        )

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        steps: Sequence[ClassStep],
    ) -> None:
        """Write K and V of the step's tokens into their blocks, attend, fill output.

        Args:
            query, output: [num_tokens, num_query_heads, head_size], tokens strided as they like.
            key, value: [num_tokens, num_kv_heads, head_size], likewise.
            steps: one per class, in order.
        """
        call = self._call
        for index, step in enumerate(steps):
            self._steps[index] = step.pointer
        call.query = HaRows(query.data_ptr(), query.stride(0))
        call.key = HaRows(key.data_ptr(), key.stride(0))
        call.value = HaRows(value.data_ptr(), value.stride(0))
        call.output = HaRows(output.data_ptr(), output.stride(0))
        self._kernel(self._call_address)
