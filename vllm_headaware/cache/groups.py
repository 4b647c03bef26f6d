"""KV-cache groups: one per head class, exactly as planned."""

from __future__ import annotations

from vllm.v1.kv_cache_interface import (
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    UniformTypeKVCacheSpecs,
    iter_layer_specs,
)

from vllm_headaware.cache.specs import head_class_of
from vllm_headaware.plan import Plan


def group_by_class(specs: dict[str, KVCacheSpec], plan: Plan) -> list[KVCacheGroupSpec]:
    """One group per head class, in the plan's order, with the layers of all ranks."""
    groups = []
    for head_class in plan.classes:
        own = {name: spec for name, spec in specs.items() if head_class_of(spec) == head_class.name}
        merged = UniformTypeKVCacheSpecs(block_size=head_class.block_tokens, kv_cache_specs=own)
        groups.append(KVCacheGroupSpec(list(own), merged))
    return groups


def is_head_aware(config: KVCacheConfig) -> bool:
    """Whether the groups of a KV-cache config are head classes."""
    return any(
        head_class_of(spec) is not None
        for group in config.kv_cache_groups
        for spec in iter_layer_specs(group.kv_cache_spec)
    )


def block_bytes(config: KVCacheConfig) -> int:
    """Bytes of one block, all layers together: the KV buffer over its blocks.

    Every entry of kv_cache_tensors is a view of the same buffer and has the buffer's size.
    """
    return config.kv_cache_tensors[0].size // config.num_blocks
