"""Split layers on vLLM's own CPU attention op: where the native kernels cannot run.

The metadata builder cuts rows for the classes that have a window, so the op needs no change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.layers.attention.attention import (
    unified_attention_with_output,
    unified_kv_cache_update,
)
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from vllm_headaware.attention.requests import ClassWindows, windows_of
from vllm_headaware.attention.rows import UNLIMITED, Rows, WindowRule, cut_rows
from vllm_headaware.attention.split import HeadSplitAttention
from vllm_headaware.cache.specs import HeadClassSpec, SinkWindowSpec


class StockMetadataBuilder(CPUAttentionMetadataBuilder):
    """Stock CPU metadata, after row cutting for sink + window classes."""

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> CPUAttentionMetadata:
        """Build the op's metadata; slot mapping and token counts stay those of the step."""
        spec: Any = self.kv_cache_spec
        own = windows_of(spec.head_class, common_attn_metadata.num_reqs)
        if isinstance(spec, SinkWindowSpec) or own.windows is not None:
            rows = _rows_of_step(spec, common_attn_metadata, own)
            common_attn_metadata = replace(
                common_attn_metadata,
                num_reqs=rows.num_rows,
                query_start_loc=rows.query_start_loc,
                query_start_loc_cpu=rows.query_start_loc,
                seq_lens=rows.seq_lens,
                max_seq_len=int(rows.seq_lens.max()) if rows.num_rows else 0,
                block_table_tensor=rows.block_table,
            )
        return super().build(common_prefix_len, common_attn_metadata, fast_build)


def _rows_of_step(spec: HeadClassSpec, step: Any, own: ClassWindows) -> Rows:
    """Rows of a step, cut once for all builders of a class (one per head count)."""
    rule = WindowRule(spec.sink, spec.window or UNLIMITED, spec.block_size)
    cached = getattr(step, "_headaware_rows", None)
    if cached is None or cached[0] != rule:
        rows = cut_rows(
            rule,
            step.query_start_loc,
            step.seq_lens,
            step.block_table_tensor,
            *own,
        )
        cached = step._headaware_rows = (rule, rows)
    return cached[1]


class StockBackend(CPUAttentionBackend):
    """vLLM's CPU attention on blocks that hold all layers of a class.

    The stock op declares only a layer-outermost layout, but honours block and head strides, so it
    reads block-outermost caches as they are.
    """

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Block outermost: what lets classes of different width share one pool."""
        return (KVCacheLayout.BLHNC,)

    @staticmethod
    def get_builder_cls() -> type[StockMetadataBuilder]:
        return StockMetadataBuilder


def attend(
    split: HeadSplitAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """Attend one class after the other; see HeadSplitAttention.attend."""
    children: Any = split.by_class
    for child, kv_heads, query_heads in zip(
        children, split.kv_heads, split.query_heads, strict=True
    ):
        q, k, v = query[:, query_heads], key[:, kv_heads], value[:, kv_heads]
        # The op reads strided heads but writes a dense output.
        out = output if len(children) == 1 else q.new_empty(q.shape)
        unified_kv_cache_update(k, v, child.layer_name)
        unified_attention_with_output(q, k, v, out, child.layer_name)
        if out is not output:
            output[:, query_heads] = out
