"""From what the user asked for and a model folder to a plan: the one way there.

vLLM's start-up and `vllm-headaware plan` both come through here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.geometry import ModelGeometry
from vllm_headaware.kernels.cpu.support import why_not_native
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.policies import POLICIES
from vllm_headaware.policies.base import AUTO, DTYPE_OPTIONS
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.locate import find_profile

NATIVE_DEFAULT = "int8"
"""What a class's dtype "auto" means where the native kernels run."""


def plan_model(
    config: KVPolicyConfig,
    geometry: ModelGeometry,
    model_dir: Path,
    tensor_parallel_size: int = 1,
) -> tuple[Plan, HeadProfile | None]:
    """Find the profile a policy needs (measuring it if there is none) and make the plan.

    Raises:
        HeadAwareError: an unusable profile, a model with layers that have windows of their own, a
            KV dtype that cannot be served here, or heads that cannot be dealt to the ranks.
    """
    config = resolve_dtypes(config, geometry)
    profile = None
    if POLICIES[config.policy]().needs_profile:
        profile = find_profile(
            model_dir, config.head_profile, sink=config.sink, window=config.window
        )
        _require_full_attention(model_dir)
    return make_plan(config, geometry, profile, tensor_parallel_size), profile


def resolve_dtypes(config: KVPolicyConfig, geometry: ModelGeometry) -> KVPolicyConfig:
    """Say what "auto" means here, and refuse formats that only native kernels have without them.

    Raises:
        HeadAwareError: a KV dtype other than the model's, and no native kernels for the model.
    """
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
    auto: dict[str, Any] = {n: NATIVE_DEFAULT for n in DTYPE_OPTIONS if getattr(config, n) == AUTO}
    return dataclasses.replace(config, **auto)


def _require_full_attention(model_dir: Path) -> None:
    """Such models can be profiled and evaluated, but not be served with a policy yet."""
    from transformers import AutoConfig

    from vllm_headaware.profile.probe import layer_windows

    if any(layer_windows(AutoConfig.from_pretrained(model_dir))):
        raise HeadAwareError(
            f"{model_dir} has layers with a sliding window of their own, which no KV policy covers"
            " yet; use --kv-policy full for it"
        )
