"""Metrics say what the census says, in bytes of the plan."""

import pytest
from prometheus_client import CollectorRegistry

from tests.test_plan import DEMO, plan_for
from vllm_headaware import metrics
from vllm_headaware.cache.census import Census
from vllm_headaware.geometry import ModelGeometry

CENSUS = Census(
    held={"retrieval": 11, "induction": 3, "local": 5},
    pending=1,
    free=80,
    total=100,
    tokens=1000,
    freed={"window": 7, "finished": 2, "preempted": 0},
)


def total(registry: CollectorRegistry, family: str) -> float:
    """Sum over all samples of a family."""
    return sum(
        sample.value
        for found in registry.collect()
        for sample in found.samples
        if sample.name == f"vllm_headaware_{family}"
    )


def test_heads_classes_and_pool_agree() -> None:
    registry, plan = CollectorRegistry(), plan_for(DEMO)
    shown = metrics.HeadAwareMetrics(plan, "m", "sha256:0123456789abcdef", [0], registry)
    assert total(registry, "kv_used_bytes") == 0
    shown.update(CENSUS, 0)
    used = 20 * plan.block_bytes
    assert total(registry, "kv_used_bytes") == used
    assert total(registry, "kv_class_bytes") == used
    assert total(registry, "kv_class_blocks") == 20
    assert total(registry, "kv_head_bytes") == pytest.approx(used - plan.block_bytes)
    assert total(registry, "kv_layer_bytes") == pytest.approx(used - plan.block_bytes)
    assert total(registry, "kv_free_bytes") == 80 * plan.block_bytes
    assert total(registry, "kv_capacity_bytes") == 100 * plan.block_bytes
    assert total(registry, "kv_dense_equivalent_bytes") == plan.dense_bytes(1000)


def test_counters_move_by_what_is_new() -> None:
    registry, plan = CollectorRegistry(), plan_for(DEMO)
    shown = metrics.HeadAwareMetrics(plan, "m", "", [0, 1], registry)
    shown.update(CENSUS, 0)
    shown.update(CENSUS, 0)
    shown.update(CENSUS, 1)
    assert total(registry, "blocks_freed_total") == 2 * 9
    assert total(registry, "bytes_freed_total") == 2 * 9 * plan.block_bytes


def test_head_series_are_bounded() -> None:
    geometry = ModelGeometry(94, 64, 64, 128, "bfloat16", 8192)
    registry = CollectorRegistry()
    metrics.HeadAwareMetrics(plan_for(geometry), "m", "", [0], registry)
    assert total(registry, "head_series_dropped") == 94 * 64
    names = [s.name for f in registry.collect() for s in f.samples]
    assert "vllm_headaware_kv_head_bytes" not in names
    assert names.count("vllm_headaware_kv_layer_bytes") == 94
