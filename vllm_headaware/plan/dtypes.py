"""How classes store K and V on this machine: what "auto" means, and what cannot be had."""

from __future__ import annotations

import dataclasses
from typing import Any

from vllm_headaware.config.kv_policy import KVPolicyConfig
from vllm_headaware.config.names import AUTO, DTYPE_OPTIONS
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.cpu.support import why_not_native
from vllm_headaware.kernels.triton.support import why_not_triton
from vllm_headaware.plan.geometry import ModelGeometry

NATIVE_DEFAULT = "k8v4"
"""What a class's dtype "auto" means where kernels of ours run."""


def resolve_dtypes(
    config: KVPolicyConfig, geometry: ModelGeometry, triton: bool = False
) -> KVPolicyConfig:
    """Say what "auto" means here, and refuse formats that only native kernels have without them.

    Args:
        triton: whether the Triton kernels will serve; else those for CPUs.

    Raises:
        HeadAwareError: a KV dtype other than the model's, and no native kernels for the model.
    """
    config = _own_windows_as_local(config)
    if triton:
        if reason := why_not_triton(geometry.head_size, geometry.group_size):
            raise HeadAwareError(f"--kv-policy cannot serve this model on GPUs: {reason}")
        return native_dtypes(config)
    reason = why_not_native(geometry.head_size, geometry.group_size)
    if config.policy == "h2o" and reason:
        raise HeadAwareError(f"--kv-policy h2o needs the native CPU kernels, but {reason}")
    changed: dict[str, Any] = {}
    for name in DTYPE_OPTIONS:
        asked = getattr(config, name)
        if asked == AUTO:
            changed[name] = geometry.kv_dtype if reason else NATIVE_DEFAULT
        elif reason and asked != geometry.kv_dtype:
            raise HeadAwareError(
                f"--kv-{name.replace('_', '-')} {asked} needs the native CPU kernels, but {reason};"
                f" use auto or the model's own {geometry.kv_dtype}"
            )
    return dataclasses.replace(config, **changed) if config.active else config


def native_dtypes(config: KVPolicyConfig) -> KVPolicyConfig:
    """The same options with "auto" as where native kernels run, for machines that are not asked."""
    config = _own_windows_as_local(config)
    auto: dict[str, Any] = {n: NATIVE_DEFAULT for n in DTYPE_OPTIONS if getattr(config, n) == AUTO}
    return dataclasses.replace(config, **auto)


def _own_windows_as_local(config: KVPolicyConfig) -> KVPolicyConfig:
    """What "auto" means for layers with a sliding window of their own."""
    if config.own_window_dtype != AUTO:
        return config
    return dataclasses.replace(config, own_window_dtype=config.local_dtype)
