"""How the plan reaches every process: in VllmConfig.additional_config."""

from __future__ import annotations

import dataclasses
from typing import Any

from vllm_headaware.config.request import RequestLimits
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan import Plan
from vllm_headaware.plan.plan_json import plan_from_dict, plan_to_dict

KEY = "vllm_headaware"
MASS = "headaware_mass"
"""Attribute of ModelRunnerOutput: attention mass by block, of each request of a step."""
WINDOWS = "headaware_windows"
"""Attribute of SchedulerOutput: windows of the requests that start or whose windows change:
(windows, those for queries of the prompt, tokens of the prompt), by request id."""
MOVES = "headaware_moves"
"""Attribute of SchedulerOutput: compactions to carry out before the step, by request id."""
EVICTED = "headaware_evicted"
"""Attribute of SchedulerOutput: places of evicted blocks, of each request of a step."""


def put_plan(
    vllm_config: Any,
    plan: Plan,
    profile_checksum: str,
    limits: RequestLimits | None = None,
    token_scores: str = "",
) -> None:
    """Attach a plan to an engine's config; it becomes part of the compile-cache key.

    Args:
        token_scores: the weights of a profile's, where heads keep a share of a prompt's tokens.

    Raises:
        HeadAwareError: additional_config is not a mapping.
    """
    if not isinstance(vllm_config.additional_config, dict):
        raise HeadAwareError("--kv-policy needs --additional-config to be a JSON object")
    vllm_config.additional_config = {
        **vllm_config.additional_config,
        KEY: {
            "plan": plan_to_dict(plan),
            "profile": profile_checksum,
            "limits": dataclasses.asdict(limits or RequestLimits()),
            "token_scores": token_scores,
        },
    }


def get_plan(vllm_config: Any) -> Plan | None:
    """The plan an engine runs under, or None where the policy is off."""
    carried = _carried(vllm_config)
    return plan_from_dict(carried["plan"]) if carried else None


def plan_of(owner: Any) -> Plan | None:
    """The plan of an object with a vllm_config, read once."""
    if "_headaware_plan" not in owner.__dict__:
        owner._headaware_plan = get_plan(owner.vllm_config)
    return owner._headaware_plan


def get_profile_checksum(vllm_config: Any) -> str:
    """Checksum of the profile behind the plan; empty where the policy is off."""
    carried = _carried(vllm_config)
    return carried["profile"] if carried else ""


def get_token_scores(vllm_config: Any) -> str:
    """Weights of token scores, packed; empty where every head keeps all of a prompt."""
    carried = _carried(vllm_config)
    return carried["token_scores"] if carried else ""


def get_limits(vllm_config: Any) -> RequestLimits:
    """What requests may ask for; the defaults where the policy is off."""
    carried = _carried(vllm_config)
    return RequestLimits(**carried["limits"]) if carried else RequestLimits()


def _carried(vllm_config: Any) -> dict[str, Any] | None:
    extra = vllm_config.additional_config
    return extra.get(KEY) if isinstance(extra, dict) else None
