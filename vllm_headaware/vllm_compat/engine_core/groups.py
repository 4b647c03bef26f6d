"""Head classes in vLLM's block pool: their groups and their managers."""

from __future__ import annotations

from typing import Any

from vllm_headaware.vllm_compat.carrier import get_plan
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook grouping, ask for zeroing, and register the specs."""
    from vllm.v1.kv_cache_interface import KVCacheConfig

    _register_specs()
    _hook_grouping()
    stock = KVCacheConfig.__dict__["needs_kv_cache_zeroing"]
    if not isinstance(stock, _NeedsZeroing):
        setattr(KVCacheConfig, "needs_kv_cache_zeroing", _NeedsZeroing(stock.fget))  # noqa: B010


def _hook_grouping() -> None:
    """0.32 has a function; from 0.33 on a builder is asked, which platforms may replace."""
    try:
        from vllm.v1.core.kv_cache_planning import DefaultKVCacheConfigBuilder
    except ImportError:
        from vllm.v1.core import kv_cache_utils

        wrap(kv_cache_utils, "get_kv_cache_groups", _get_kv_cache_groups)
    else:
        wrap(DefaultKVCacheConfigBuilder, "get_kv_cache_groups", _groups_of_builder)


def _register_specs() -> None:
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    from vllm_headaware.cache.managers import SinkWindowManager
    from vllm_headaware.cache.specs import SinkWindowSpec, UnlimitedSpec
    from vllm_headaware.cache.unlimited import UnlimitedManager

    register_all_kvcache_specs(None)
    KVCacheSpecRegistry.register(UnlimitedSpec, UnlimitedManager, UnlimitedSpec)
    KVCacheSpecRegistry.register(SinkWindowSpec, SinkWindowManager, SinkWindowSpec)


def _get_kv_cache_groups(original: Any, vllm_config: Any, kv_cache_spec: Any) -> Any:
    plan = get_plan(vllm_config)
    if plan is None:
        return original(vllm_config, kv_cache_spec)
    from vllm_headaware.cache.groups import group_by_class

    return group_by_class(kv_cache_spec, plan)


def _groups_of_builder(original: Any, self: Any, vllm_config: Any, kv_cache_spec: Any) -> Any:
    return _get_kv_cache_groups(
        lambda config, spec: original(self, config, spec), vllm_config, kv_cache_spec
    )


class _NeedsZeroing(property):
    """Blocks of head classes are always zeroed for their next owner."""

    def __init__(self, stock: Any) -> None:
        from vllm_headaware.cache.groups import is_head_aware

        super().__init__(lambda config: is_head_aware(config) or stock(config))
