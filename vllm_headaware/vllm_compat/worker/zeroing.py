"""Clean blocks for their next owner, whatever the class."""

from __future__ import annotations

from typing import Any

from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook zeroing on CPU."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    wrap(CPUModelRunner, "_zero_block_ids", _zero_block_ids)


def _zero_block_ids(original: Any, self: Any, block_ids: list[int]) -> None:
    from vllm_headaware.cache.groups import is_head_aware

    config = self.kv_cache_config
    if not is_head_aware(config):
        return original(self, block_ids)
    layer = self.compilation_config.static_forward_context[config.kv_cache_groups[0].layer_names[0]]
    import torch

    storage = layer.kv_cache.untyped_storage()
    raw = torch.empty(0, dtype=torch.int8).set_(storage).view(config.num_blocks, -1)
    for block_id in block_ids:
        raw[block_id].zero_()
    return None
