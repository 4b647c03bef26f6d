"""From a user's policy and an engine's config to a plan the engine carries, or a refusal."""

from __future__ import annotations

import logging
from typing import Any

from vllm_headaware.attention import LIBRARY, OPERATION
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.config.request import RequestLimits
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan import Plan
from vllm_headaware.plan.geometry import ModelGeometry, served_windows
from vllm_headaware.policies.base import HeadPolicy
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.model_hash import resolve_model_dir
from vllm_headaware.profile.planning import plan_model
from vllm_headaware.vllm_compat.carrier import put_plan
from vllm_headaware.vllm_compat.contract import require_contract
from vllm_headaware.vllm_compat.front_end.conflicts import refuse_conflicts

logger = logging.getLogger("vllm.headaware")
UNTRIED = (
    "KV policies on GPUs are new: their kernels were measured on an H200, the engine only in"
    " Triton's interpreter; python -m checks.gpu of the repository checks both on yours"
)


def activate(vllm_config: Any, config: KVPolicyConfig) -> None:
    """Make the plan for an engine and attach it to its config. No weights are loaded for serving.

    Raises:
        HeadAwareError: a flag combination, model or profile that cannot be served.
    """
    require_contract()
    refuse_conflicts(vllm_config, config)
    geometry = engine_geometry(vllm_config)
    plan, profile = plan_model(
        config,
        geometry,
        resolve_model_dir(vllm_config.model_config.model),
        vllm_config.parallel_config.tensor_parallel_size,
        triton=vllm_config.use_v2_model_runner,
    )
    limits = RequestLimits(
        floor=config.floor,
        budget_min=config.request_budget_min,
        budget_max=config.request_budget_max,
        full=config.request_full == "allow",
        reserve=config.admission == "reserve",
        elastic=config.elastic == "all",
    )
    split_graphs(vllm_config.compilation_config)
    checksum = profile.checksum if profile else ""
    put_plan(vllm_config, plan, checksum, limits, token_scores_for(config, profile))
    logger.info(describe(plan))
    if vllm_config.device_config.device_type == "cuda":
        logger.warning(UNTRIED)


def token_scores_for(config: KVPolicyConfig, profile: HeadProfile | None) -> str:
    """What workers need of a profile besides the plan.

    Raises:
        HeadAwareError: heads are to choose tokens, and the profile cannot tell which.
    """
    if config.retrieval_keep >= 1 or profile is None:
        return ""
    if not profile.token_scores:
        raise HeadAwareError(
            "--kv-retrieval-keep needs token scores, which this head profile does not have: make a"
            " new one with `vllm-headaware profile MODEL`, without --through-engine, or remove the"
            " flag"
        )
    return profile.token_scores


def split_graphs(compilation_config: Any) -> None:
    """Leave split attention out of piecewise CUDA graphs, as vLLM does with its own attention.

    A graph would repeat what was launched when it was captured, by which no prompt was read.
    """
    if compilation_config.splitting_ops:
        ops = [*compilation_config.splitting_ops, f"{LIBRARY}::{OPERATION}"]
        compilation_config.splitting_ops = list(dict.fromkeys(ops))


def engine_geometry(vllm_config: Any) -> ModelGeometry:
    """The geometry of the model an engine is about to load."""
    model = vllm_config.model_config
    return ModelGeometry(
        num_layers=model.hf_text_config.num_hidden_layers,
        num_query_heads=model.hf_text_config.num_attention_heads,
        num_kv_heads=model.get_total_num_kv_heads(),
        head_size=model.get_head_size(),
        kv_dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=model.max_model_len,
        own_windows=served_windows(model.hf_text_config),
    )


def describe(plan: Plan) -> str:
    """One log line an operator understands."""
    length = plan.geometry.max_model_len
    classes = ", ".join(
        f"{c.num_heads} {c.name} heads in {c.policy.dtype}{_kept(c.policy)}" for c in plan.classes
    )
    share = plan.request_bytes(length) / plan.dense_bytes(length)
    return (
        f"KV policy {plan.policy}: {classes}; a request of {length:,} tokens holds"
        f" {plan.request_bytes(length) / 2**20:,.1f} MiB, {share:.1%} of a full cache"
    )


def _kept(policy: HeadPolicy) -> str:
    if policy.heavy_hitters is not None:
        return f" (sink {policy.sink}, heaviest {policy.heavy_hitters})"
    if policy.exact:
        return f" (the model's own last {policy.window})"
    if policy.window is None:
        return "" if policy.keep >= 1 else f" ({policy.keep:.0%} of a prompt)"
    return f" (sink {policy.sink} + last {policy.window})"
