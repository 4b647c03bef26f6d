"""The attention backend of split layers, and the seam for other kernels.

BACKENDS maps a vLLM device type to the backend of that device. The CPU backend is vLLM's own op:
its metadata builder cuts rows for the classes that have a window, so the op itself needs no
change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from vllm_headaware.attention.rows import Rows, WindowRule, cut_rows
from vllm_headaware.cache.specs import SinkWindowSpec


class HeadClassCPUMetadataBuilder(CPUAttentionMetadataBuilder):
    """Stock CPU metadata, after row cutting for sink + window classes."""

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> CPUAttentionMetadata:
        """Build the op's metadata; slot mapping and token counts stay those of the step."""
        spec = self.kv_cache_spec
        if isinstance(spec, SinkWindowSpec):
            rows = _rows_of_step(spec, common_attn_metadata)
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


def _rows_of_step(spec: SinkWindowSpec, step: Any) -> Rows:
    """Rows of a step, cut once for all builders of a class (one per head count)."""
    rule = WindowRule(spec.sink, spec.window, spec.block_size)
    cached = getattr(step, "_headaware_rows", None)
    if cached is None or cached[0] != rule:
        rows = cut_rows(rule, step.query_start_loc, step.seq_lens, step.block_table_tensor)
        cached = step._headaware_rows = (rule, rows)
    return cached[1]


class HeadClassCPUBackend(CPUAttentionBackend):
    """vLLM's CPU attention on blocks that hold all layers of a class.

    The stock op declares only a layer-outermost layout, but honours block and head strides, so it
    reads block-outermost caches as they are.
    """

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Block outermost: what lets classes of different width share one pool."""
        return (KVCacheLayout.BLHNC,)

    @staticmethod
    def get_builder_cls() -> type[HeadClassCPUMetadataBuilder]:
        return HeadClassCPUMetadataBuilder


BACKENDS = {"cpu": HeadClassCPUBackend}
