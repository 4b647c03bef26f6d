"""From what the user asked for and a model folder to a plan: the one way there.

vLLM's start-up and `vllm-headaware plan` both come through here.
"""

from __future__ import annotations

from pathlib import Path

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.plan.dtypes import resolve_dtypes
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.policies import POLICIES
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.locate import find_profile


def plan_model(
    config: KVPolicyConfig,
    geometry: ModelGeometry,
    model_dir: Path,
    tensor_parallel_size: int = 1,
    triton: bool = False,
) -> tuple[Plan, HeadProfile | None]:
    """Find the profile a policy needs (measuring it if there is none) and make the plan.

    Raises:
        HeadAwareError: an unusable profile, layers that no policy covers, a KV dtype that cannot be
            served here, or heads that cannot be dealt to the ranks.
    """
    config = resolve_dtypes(config, geometry, triton)
    profile = None
    if POLICIES[config.policy]().needs_profile:
        profile = find_profile(
            model_dir, config.head_profile, sink=config.sink, window=config.window
        )
    scores = profile.scores if profile else None
    return make_plan(config, geometry, scores, tensor_parallel_size), profile
