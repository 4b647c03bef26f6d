"""Baselines that are given at least the bytes that a policy holds."""

from __future__ import annotations

import dataclasses

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.plan import BLOCK_QUANTUM, Plan, make_plan


def streamingllm_at(plan: Plan, config: KVPolicyConfig, num_tokens: int) -> Plan:
    """The streamingllm plan with the narrowest window that holds no fewer bytes than `plan` does.

    Where block rounding makes `plan` dearer than the whole request, the window is the request.

    Windows go in steps of the smallest block; what is rounded is in the baseline's favour.

    Args:
        plan: of the policy to compare with.
        config: its options; sinks and the KV format of local heads are the baseline's too.
        num_tokens: length of the decoding request whose bytes are compared.
    """
    wanted = plan.request_bytes(num_tokens)

    def at(window: int) -> Plan:
        # Options that streamingllm does not have stay at their defaults.
        own = KVPolicyConfig("streamingllm", sink=config.sink, window=window)
        return make_plan(dataclasses.replace(own, local_dtype=config.local_dtype), plan.geometry)

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
