"""Metrics say what the census says, in bytes of the plan."""

import dataclasses
import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.plan.test_plan import DEMO, plan_for
from vllm_headaware.cache.census import Census, Events, Holding
from vllm_headaware.config.request import RequestLimits
from vllm_headaware.observability import metrics
from vllm_headaware.observability.metric_families import FAMILIES
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.plan.ladder import Ladders

HELD = {"retrieval": 11, "induction": 3, "local": 5}
CENSUS = Census(
    at=1000.5,
    held=HELD,
    pending=1,
    free=80,
    total=100,
    tokens={"retrieval": 1000, "induction": 300, "local": 330},
    dense_tokens=1000,
    planned=21,
    running=2,
    requests=[Holding("a", 700, {"retrieval": 8}, {"retrieval": 700})],
    events=Events(
        freed={"window": 7, "finished": 2, "preempted": 0},
        prefix_hits={"retrieval": 4, "induction": 2, "local": 1},
        finished=[Holding("", 97, HELD, {"retrieval": 97, "induction": 97, "local": 65})],
        level_changes={"tighten": 2, "relax": 1},
        started={"0": 3, "1": 2},
    ),
    unpromised=35,
    level=1,
)


def value(registry: CollectorRegistry, sample_name: str, **labels: str) -> float:
    """Sum over the samples of a name whose labels include the given ones."""
    return sum(
        sample.value
        for found in registry.collect()
        for sample in found.samples
        if sample.name == f"vllm_headaware_{sample_name}"
        and labels.items() <= sample.labels.items()
    )


def test_budgets_are_asked_achieved_and_tightened() -> None:
    registry, plan = CollectorRegistry(), plan_for(DEMO, budget=2048)
    limits = RequestLimits(floor=0.25)
    shown = metrics.HeadAwareMetrics(plan, "m", "", [0], registry, limits)
    levels = Ladders(plan, limits).default
    assert value(registry, "budget_asked_tokens") == 2048
    assert value(registry, "budget_achieved_tokens") == plan.mean_tokens()
    assert value(registry, "budget_level_max") == len(levels) - 1 > 1
    assert value(registry, "budget_level") == 0
    for _ in range(2):
        shown.update(CENSUS, 0)
    assert value(registry, "budget_level") == 1
    assert value(registry, "budget_window_tokens", head_class="local") == levels[1][2]
    assert levels[1][2] != plan.windows[2]
    assert value(registry, "kv_unpromised_bytes") == 35 * plan.block_bytes
    assert value(registry, "budget_changes_total", direction="tighten") == 4
    assert value(registry, "budget_changes_total", direction="relax") == 2
    assert value(registry, "requests_started_total", level="0") == 6
    assert value(registry, "requests_started_total", level="1") == 4


def test_heads_classes_and_pool_agree() -> None:
    registry, plan = CollectorRegistry(), plan_for(DEMO)
    shown = metrics.HeadAwareMetrics(plan, "m", "sha256:0123456789abcdef", [0], registry)
    assert value(registry, "kv_used_bytes") == 0
    shown.update(CENSUS, 0)
    used = 20 * plan.block_bytes
    assert value(registry, "kv_used_bytes") == used
    assert value(registry, "kv_class_bytes") == used
    assert value(registry, "kv_class_blocks") == 20
    assert value(registry, "kv_head_bytes") == pytest.approx(used - plan.block_bytes)
    assert value(registry, "kv_layer_bytes") == pytest.approx(used - plan.block_bytes)
    assert value(registry, "kv_free_bytes") == 80 * plan.block_bytes
    assert value(registry, "kv_capacity_bytes") == 100 * plan.block_bytes
    assert value(registry, "kv_dense_equivalent_bytes") == plan.dense_bytes(1000)
    assert value(registry, "kv_planned_bytes") == 21 * plan.block_bytes
    assert value(registry, "kv_class_tokens", head_class="local") == 330
    heads = {c.name: c.num_heads for c in plan.classes}
    head_tokens = sum(heads[name] * tokens for name, tokens in CENSUS.tokens.items())
    assert value(registry, "kv_head_tokens") == head_tokens
    assert value(registry, "kv_layer_tokens") == head_tokens
    assert value(registry, "census_timestamp_seconds") == 1000.5


def test_a_new_registry_has_its_own_families_wherever_it_lies() -> None:
    """A registry can lie in memory where one lay that is gone."""
    plan = plan_for(DEMO)
    places: set[int] = set()
    for _ in range(1000):
        registry = CollectorRegistry()
        metrics.HeadAwareMetrics(plan, "m", "", [0], registry)
        assert len(list(registry.collect())) == len(FAMILIES)
        if id(registry) in places:
            return
        places.add(id(registry))
        del registry
        gc.collect()
    pytest.fail("no place was used again: the test shows nothing")


def test_every_family_has_a_series_from_the_start() -> None:
    """A rate needs a first sample; a dashboard must not be empty until the first request."""
    registry = CollectorRegistry()
    shown = metrics.HeadAwareMetrics(plan_for(DEMO), "m", "", [0, 1], registry)
    shown.update(CENSUS, 0)
    shown.update(CENSUS, 1)
    exported = {f.name for f in registry.collect() if f.samples}
    assert exported == {f"vllm_headaware_{family.name}" for family in FAMILIES}
    for found in registry.collect():
        engines = {sample.labels["engine"] for sample in found.samples}
        assert engines == {"0", "1"}, found.name


def test_events_are_counted() -> None:
    registry, plan = CollectorRegistry(), plan_for(DEMO)
    shown = metrics.HeadAwareMetrics(plan, "m", "", [0, 1], registry)
    shown.update(CENSUS, 0)
    shown.update(dataclasses.replace(CENSUS, events=Events()), 0)
    shown.update(CENSUS, 1)
    assert value(registry, "blocks_freed_total", reason="window") == 2 * 7
    assert value(registry, "bytes_freed_total") == 2 * 9 * plan.block_bytes
    assert value(registry, "prefix_hit_blocks_total", head_class="local", engine="1") == 1
    assert value(registry, "request_kv_bytes_sum") == 2 * 19 * plan.block_bytes
    assert value(registry, "head_kept_tokens_sum", head_class="local", engine="0") == 65
    assert value(registry, "head_kept_tokens_bucket", head_class="local", le="64.0") == 0
    assert value(registry, "head_kept_tokens_bucket", head_class="local", le="128.0") == 2


def test_head_series_are_bounded_over_engines() -> None:
    geometry = ModelGeometry(64, 16, 16, 128, "bfloat16", 8192)
    within, beyond = CollectorRegistry(), CollectorRegistry()
    metrics.HeadAwareMetrics(plan_for(geometry), "m", "", [0], within)
    metrics.HeadAwareMetrics(plan_for(geometry), "m", "", [0, 1], beyond)
    assert value(within, "head_series_dropped") == 0
    assert value(beyond, "head_series_dropped", engine="1") == 2 * 64 * 16
    names = [s.name for f in beyond.collect() for s in f.samples]
    assert "vllm_headaware_kv_head_bytes" not in names
    assert names.count("vllm_headaware_kv_layer_bytes") == 2 * 64
    names = [s.name for f in within.collect() for s in f.samples]
    assert names.count("vllm_headaware_kv_head_bytes") == 1024


FRONT_END = """
    import dataclasses, sys
    from tests.observability.test_metrics import CENSUS, DEMO, plan_for
    from vllm_headaware.observability import metrics

    shown = metrics.HeadAwareMetrics(plan_for(DEMO), "m", "", [0])
    shown.update(dataclasses.replace(CENSUS, at=float(sys.argv[1]), free=int(sys.argv[2])), 0)
"""


def test_front_ends_in_several_processes_add_up(tmp_path: Path) -> None:
    """Each census reaches one front end: gauges show the last one, counters add up."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for at, free in ((1.0, 70), (2.0, 60)):
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FRONT_END), str(at), str(free)],
            env=environment,
            cwd=Path(__file__).parents[2],
            check=True,
        )
    from prometheus_client.multiprocess import MultiProcessCollector

    registry, plan = CollectorRegistry(), plan_for(DEMO)
    MultiProcessCollector(registry, str(tmp_path))
    assert value(registry, "kv_used_bytes") == 40 * plan.block_bytes
    assert value(registry, "blocks_freed_total", reason="window") == 14
    assert value(registry, "request_kv_bytes_count") == 2
