"""Who takes part in a comparison: the policy, a full cache, and baselines at equal bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval.baselines import streamingllm_at, tokens_per_head
from vllm_headaware.eval.methods import ByRule, HeavyHitters, Method
from vllm_headaware.eval.target import Target
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.plan.dtypes import native_dtypes
from vllm_headaware.plan.plan_json import plan_to_dict

METHODS = ("full", "headaware", "streamingllm", "h2o")


@dataclass(frozen=True)
class Contender:
    """A method and what it would hold.

    Attributes:
        held_bytes: of one decoding request of the length that was asked for.
        reading_bytes: the same while these tokens are a prompt and the last one is computed.
        options: plain values that say what the method is; equal options, equal results.
    """

    name: str
    method: Method
    held_bytes: int
    reading_bytes: int
    options: dict[str, Any]

    @property
    def digest(self) -> str:
        """Tells methods apart in the journal of finished runs."""
        return hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()


def line_up(config: KVPolicyConfig, target: Target, num_tokens: int) -> dict[str, Contender]:
    """All METHODS for requests of num_tokens; the baselines hold no fewer bytes than headaware.

    Args:
        config: of the headaware policy; dtypes "auto" become what serving takes on a CPU.

    Raises:
        HeadAwareError: an option that masks cannot show.
    """
    if config.retrieval_keep < 1:
        raise HeadAwareError(
            "--kv-retrieval-keep is measured in the engine alone: `vllm-headaware eval long`"
        )
    config = native_dtypes(config)
    own = make_plan(config, target.geometry, target.profile.scores)
    streaming = streamingllm_at(own, config, num_tokens)
    full = full_cache(target, num_tokens)
    return {
        "full": full,
        "headaware": by_plan("headaware", own, target, num_tokens),
        "streamingllm": by_plan("streamingllm", streaming, target, num_tokens),
        "h2o": heavy_hitters(full, streaming, target, num_tokens),
    }


def full_cache(target: Target, num_tokens: int) -> Contender:
    """Every head keeps everything, in the geometry's dtype, without block rounding."""
    plan = make_plan(KVPolicyConfig("full"), target.geometry)
    full = by_plan("full", plan, target, num_tokens)
    dense = plan.dense_bytes(num_tokens) + target.fixed_bytes(num_tokens)
    return dataclasses.replace(full, held_bytes=dense, reading_bytes=dense)


def by_plan(name: str, plan: Plan, target: Target, num_tokens: int) -> Contender:
    """What a plan shows, and the bytes of its blocks."""
    options = {"name": name, "plan": plan_to_dict(plan)}
    fixed = target.fixed_bytes(num_tokens)
    held, reading = plan.request_bytes(num_tokens), plan.reading_bytes(num_tokens)
    return Contender(name, ByRule(plan, target.windows), held + fixed, reading + fixed, options)


def heavy_hitters(full: Contender, plan: Plan, target: Target, num_tokens: int) -> Contender:
    """h2o with the bytes and the KV format of a plan of one class; prompts are read in full."""
    budget, dtype = tokens_per_head(plan, num_tokens), plan.classes[0].policy.dtype
    if not isinstance(full.method, ByRule):
        raise TypeError(f"h2o reads prompts by a rule, not with {full.name}")
    method = HeavyHitters(budget, dtype, full.method)
    options = {"name": "h2o", "budget": budget, "dtype": dtype, "reader": full.options}
    held = plan.request_bytes(num_tokens) + target.fixed_bytes(num_tokens)
    return Contender("h2o", method, held, full.reading_bytes, options)
