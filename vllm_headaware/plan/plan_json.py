"""Plans as plain JSON values: how they reach other processes, and scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.plan.plan import Plan
from vllm_headaware.policies.base import HeadPolicy


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Plain JSON values; plan_from_dict gives the plan back."""
    return {
        "policy": plan.policy,
        "geometry": dataclasses.asdict(plan.geometry),
        "classes": [
            {**dataclasses.asdict(c.policy), "block_tokens": c.block_tokens} for c in plan.classes
        ],
        "assignment": [list(row) for row in plan.assignment],
        "tensor_parallel_size": plan.tensor_parallel_size,
        "budget": plan.budget,
    }


def plan_from_dict(values: Mapping[str, Any]) -> Plan:
    """The inverse of plan_to_dict."""
    assignment = tuple(tuple(row) for row in values["assignment"])
    counts = [sum(row.count(i) for row in assignment) for i in range(len(values["classes"]))]
    return Plan(
        policy=values["policy"],
        geometry=ModelGeometry(
            **{**values["geometry"], "own_windows": tuple(values["geometry"]["own_windows"])}
        ),
        classes=tuple(
            HeadClass(
                HeadPolicy(**{f.name: c[f.name] for f in dataclasses.fields(HeadPolicy)}),
                c["block_tokens"],
                counts[i],
            )
            for i, c in enumerate(values["classes"])
        ),
        assignment=assignment,
        tensor_parallel_size=values["tensor_parallel_size"],
        budget=values["budget"],
    )
