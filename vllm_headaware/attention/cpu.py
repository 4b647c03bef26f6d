"""Split layers on the native CPU kernels: one call per layer and step covers all head classes."""

from __future__ import annotations

from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.kv_cache_layout import KVCacheLayout

from vllm_headaware.attention.heavy_hitters import without_evicted
from vllm_headaware.attention.requests import windows_of
from vllm_headaware.attention.split import HeadSplitAttention
from vllm_headaware.kernels.cpu.attention import ClassCache, ClassStep, LayerAttention


class NativeMetadataBuilder(AttentionMetadataBuilder[ClassStep]):
    """The kernels apply the visibility rule themselves: they only need to know where things are."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> ClassStep:
        """One ClassStep per class, shared by its builders (one per head count)."""
        step: Any = common_attn_metadata
        if getattr(step, "_headaware_step", None) is None:
            spec: Any = self.kv_cache_spec
            if getattr(spec, "heavy_hitters", False):
                left = without_evicted(step.seq_lens, step.block_table_tensor, spec.block_size)
                step._headaware_step = ClassStep(
                    step.query_start_loc, left.seq_lens, left.block_table, mass=left.mass
                )
                return step._headaware_step
            step._headaware_step = ClassStep(
                step.query_start_loc,
                step.seq_lens,
                step.block_table_tensor,
                *windows_of(spec.head_class, step.seq_lens.shape[0]),
            )
        return step._headaware_step


class NativeBackend(CPUAttentionBackend):
    """What vLLM needs to know to allocate the blocks; attention itself goes through attend()."""

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Block outermost: what lets classes of different width share one pool."""
        return (KVCacheLayout.BLHNC,)

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:  # type: ignore[override]
        return NativeMetadataBuilder


def attend(
    split: HeadSplitAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """Attend all classes in one call; see HeadSplitAttention.attend."""
    metadata: Any = get_forward_context().attn_metadata
    if metadata is None:  # a profiling run: nothing to read or write yet
        return
    children: Any = split.by_class
    layer: LayerAttention = split.bound_to_caches(lambda: _bind(split, query.dtype))
    steps = [metadata[child.layer_name] for child in children]
    layer(query, key, value, output, steps)


def _bind(split: HeadSplitAttention, io_dtype: torch.dtype) -> LayerAttention:
    """The kernel call of a layer, once vLLM has given its classes their blocks."""
    children: Any = split.by_class
    first = children[0]
    return LayerAttention(
        num_query_heads=split.num_heads,
        num_kv_heads=split.num_kv_heads,
        head_size=split.head_size,
        scale=first.impl.scale,
        io_dtype=io_dtype,
        soft_cap=split.soft_cap,
        sink_logits=split.sink_logits(),
        classes=[
            ClassCache(
                cache=child.kv_cache,
                kv_heads=heads,
                format=child.head_class.policy.dtype,
                sink=child.head_class.sink_blocks * child.head_class.block_tokens,
                window=child.head_class.policy.window,
                exact=child.head_class.policy.exact,
            )
            for child, heads in zip(children, split.heads, strict=True)
        ],
    )
