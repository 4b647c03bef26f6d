"""From a policy and a model's geometry to a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vllm_headaware.config.kv_policy import KVPolicyConfig
from vllm_headaware.config.names import AUTO
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.plan.block_sizes import choose_block_sizes
from vllm_headaware.plan.budget import deal_budget, rough_windows
from vllm_headaware.plan.dealing import Dealing
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.plan.plan import Plan
from vllm_headaware.policies import POLICIES
from vllm_headaware.policies.base import Classified, HeadPolicy, HeadScores


def make_plan(
    config: KVPolicyConfig,
    geometry: ModelGeometry,
    scores: Mapping[str, HeadScores] | None = None,
    tensor_parallel_size: int = 1,
) -> Plan:
    """Classes from the policy, block sizes from a search, and spare room given to better heads.

    Raises:
        HeadAwareError: the policy needs a profile and there is none, or the heads cannot be dealt
            to the ranks.
    """
    if geometry.num_kv_heads % tensor_parallel_size:
        raise HeadAwareError(
            f"--tensor-parallel-size {tensor_parallel_size} does not divide the model's"
            f" {geometry.num_kv_heads} KV heads; choose a divisor"
        )
    policies, classes, ranks = _classify(config, geometry, scores)
    policies = tuple(
        dataclasses.replace(p, dtype=geometry.kv_dtype) if p.dtype == AUTO else p for p in policies
    )
    if config.budget:
        counts = [sum(row.count(index) for row in classes) for index in range(len(policies))]
        rough = rough_windows(policies, counts, config.budget, geometry.max_model_len)
        policies = tuple(
            p if p.heavy_hitters is not None or p.exact else dataclasses.replace(p, window=window)
            for p, window in zip(policies, rough, strict=True)
        )
    sizes = [FORMATS[p.dtype].token_bytes(geometry.head_size) for p in policies]
    dealing = Dealing(policies, sizes, classes, ranks, tensor_parallel_size)
    dealing.give_every_rank_every_class()
    block_tokens = choose_block_sizes(dealing, geometry)
    dealing.fill_spare_room(block_tokens)
    plan = _build(config.policy, geometry, dealing, block_tokens)
    return _within_budget(plan, config.budget) if config.budget else plan


def _classify(
    config: KVPolicyConfig, geometry: ModelGeometry, scores: Mapping[str, HeadScores] | None
) -> Classified:
    """What the policy makes of the layers that see everything; those with a sliding window of their
    own are one more class, which is never dealt anew: it has no ranks."""
    policy, own, full = POLICIES[config.policy](), geometry.own_window, geometry.full_layers
    if own is None or not config.active:
        return policy.classify(config, (geometry.num_layers, geometry.num_kv_heads), scores)
    if not full:
        raise HeadAwareError(
            "every layer of this model has a sliding window of its own: there is nothing for a KV"
            " policy to do; use --kv-policy full for it"
        )
    if config.policy == "h2o":
        raise HeadAwareError(
            "--kv-policy h2o does not serve models with sliding-window layers; use headaware"
        )
    if scores is not None:
        scores = {name: [rows[layer] for layer in full] for name, rows in scores.items()}
    policies, classes, ranks = policy.classify(config, (len(full), geometry.num_kv_heads), scores)
    sliding = HeadPolicy("sliding", window=own, dtype=config.own_window_dtype, exact=True)
    all_classes = [[len(policies)] * geometry.num_kv_heads for _ in range(geometry.num_layers)]
    all_ranks: list[list[int]] = [[] for _ in range(geometry.num_layers)]
    for layer, row, places in zip(full, classes, ranks, strict=True):
        all_classes[layer], all_ranks[layer] = row, places
    return (*policies, sliding), all_classes, all_ranks


def _build(policy: str, geometry: ModelGeometry, dealing: Dealing, sizes: tuple[int, ...]) -> Plan:
    totals = [sum(dealing.counts(r)[i] for r in range(dealing.tp)) for i in range(len(sizes))]
    return Plan(
        policy=policy,
        geometry=geometry,
        classes=tuple(
            HeadClass(p, size, total)
            for p, size, total in zip(dealing.policies, sizes, totals, strict=True)
        ),
        assignment=tuple(tuple(row) for row in dealing.classes),
        tensor_parallel_size=dealing.tp,
    )


def _within_budget(plan: Plan, budget: int) -> Plan:
    """The plan with the windows that a budget gives its classes, now that blocks are known."""
    if any(c.policy.heavy_hitters is not None for c in plan.classes):
        return dataclasses.replace(plan, budget=budget)
    windows = deal_budget(plan.classes, budget, plan.geometry.max_model_len)
    classes = tuple(c.with_window(w) for c, w in zip(plan.classes, windows, strict=True))
    return dataclasses.replace(plan, classes=classes, budget=budget)
