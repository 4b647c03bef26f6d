"""Baselines that are given at least the bytes that a policy holds, and a policy that fits bytes."""

from __future__ import annotations

import dataclasses

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.plan.block_sizes import BLOCK_QUANTUM
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.profile.format import HeadProfile


def streamingllm_at(plan: Plan, config: KVPolicyConfig, num_tokens: int) -> Plan:
    """The streamingllm plan with the narrowest window that holds no fewer bytes than `plan` does.

    Where block rounding makes `plan` dearer than the whole request, the window is the request.

    Windows go in steps of the smallest block; what is rounded is in the baseline's favour.

    Args:
        plan: of the policy to compare with.
        config: its options; sinks, prefill window and the KV format of local heads are the
            baseline's too.
        num_tokens: length of the decoding request whose bytes are compared.
    """
    wanted = plan.request_bytes(num_tokens)

    def at(window: int) -> Plan:
        # Options that streamingllm does not have stay at their defaults.
        own = KVPolicyConfig(
            "streamingllm",
            sink=config.sink,
            window=window,
            prefill_window=config.prefill_window,
            local_dtype=config.local_dtype,
        )
        return make_plan(own, plan.geometry)

    low, high = 1, -(-num_tokens // BLOCK_QUANTUM)
    while low < high:
        middle = (low + high) // 2
        if at(middle * BLOCK_QUANTUM).request_bytes(num_tokens) >= wanted:
            high = middle
        else:
            low = middle + 1
    return at(low * BLOCK_QUANTUM)


def tokens_per_head(plan: Plan, num_tokens: int) -> int:
    """Slots that every KV head of a plan with one class holds, in tokens."""
    (head_class,) = plan.classes
    return head_class.blocks(num_tokens) * head_class.block_tokens


def headaware_within(
    held_bytes: int,
    config: KVPolicyConfig,
    geometry: ModelGeometry,
    profile: HeadProfile,
    num_tokens: int,
) -> Plan:
    """The headaware plan with most retrieval heads that holds at most held_bytes.

    Args:
        config: its other options; its retrieval_share is not used.
        num_tokens: length of the decoding request whose bytes count.

    Raises:
        HeadAwareError: not even a plan with one retrieval head holds so little.
    """
    best: Plan | None = None
    # More heads mean more bytes, but for what block rounding and promotion do to neighbours.
    for heads in range(1, geometry.num_heads_total + 1):
        share = heads / geometry.num_heads_total
        options = dataclasses.replace(config, retrieval_share=share)
        plan = make_plan(options, geometry, profile.scores)
        if plan.request_bytes(num_tokens) <= held_bytes:
            best = plan
        elif best is not None:
            break
    if best is None:
        raise HeadAwareError(
            f"headaware with sink {config.sink} and window {config.window} cannot hold"
            f" {num_tokens:,} tokens in {held_bytes:,} bytes; use smaller ones or a larger budget"
        )
    return best
