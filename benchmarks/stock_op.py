"""vLLM's own CPU attention: K/V write and attention of one layer over a paged cache."""

from __future__ import annotations

from typing import Any

import torch

UNSCALED: dict[str, Any] = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "auto"}


class StockOp:
    """The ops over one cache.

    Args:
        keys, values: [blocks, KV heads, block tokens, head size], all of one dtype.
        num_heads: query heads.
        scale: of the logits.
    """

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, num_heads: int, scale: float
    ) -> None:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        self.keys, self.values, self.num_heads, self.scale = keys, values, num_heads, scale
        self.isa = _get_attn_isa(keys.dtype, keys.shape[2], keys.shape[3])

    def schedule(self, starts: torch.Tensor, lens: torch.Tensor) -> Any:
        """The work split of a step, which all its layers share: int32 [R + 1] and [R]."""
        from vllm import _custom_ops as ops

        return ops.cpu_attn_get_scheduler_metadata(
            num_reqs=lens.numel(),
            num_heads=self.num_heads,
            num_kv_heads=self.keys.shape[1],
            head_dim=self.keys.shape[3],
            seq_lens=lens,
            dtype=self.keys.dtype,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=-1,
            isa=self.isa,
            enable_kv_split=True,
            dynamic_causal=None,
            kv_cache_dtype="auto",
        )

    def __call__(
        self,
        rows: tuple[torch.Tensor, ...],
        slots: torch.Tensor,
        starts: torch.Tensor,
        lens: torch.Tensor,
        table: torch.Tensor,
        schedule: Any,
    ) -> None:
        """Write K and V to `slots` and attend; rows are query, key, value and output."""
        from vllm import _custom_ops as ops

        q, k, v, out = rows
        ops.cpu_attn_reshape_and_cache(k, v, self.keys, self.values, slots, self.isa, **UNSCALED)
        ops.cpu_attention_with_kv_cache(
            query=q,
            key_cache=self.keys,
            value_cache=self.values,
            output=out,
            query_start_loc=starts,
            seq_lens=lens,
            scale=self.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=table,
            softcap=0,
            scheduler_metadata=schedule,
            s_aux=None,
            dynamic_causal=None,
            **UNSCALED,
        )
