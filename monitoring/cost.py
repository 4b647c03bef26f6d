"""What the policy's own part of a scrape costs, apart from vLLM's part and from other processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from vllm_headaware.cache.census import empty_census
from vllm_headaware.observability.metrics import HeadAwareMetrics
from vllm_headaware.plan.plan_json import plan_from_dict

REPEATS = 30


def own_cost(plan: dict[str, Any]) -> tuple[float, float, int]:
    """Render and update the policy's families for a plan, in this process.

    Args:
        plan: what /headaware/plan.json answers.

    Returns:
        Median processor seconds to render them, the same to update them from a census, and how
        many series they are.
    """
    made = plan_from_dict(plan)
    registry = CollectorRegistry()
    metrics = HeadAwareMetrics(made, plan["model_name"], plan["profile"], [0], registry=registry)
    census = empty_census(made)
    series = sum(len(family.samples) for family in registry.collect())
    render = _median_seconds(lambda: generate_latest(registry))
    return render, _median_seconds(lambda: metrics.update(census, 0)), series


def _median_seconds(call: Callable[[], Any]) -> float:
    taken = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken)
