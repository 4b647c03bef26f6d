"""Generated files are up to date, and the dashboards keep what a lint can ask without Grafana."""

import copy
import json
from typing import Any

import pytest

from monitoring.generate import ROOT, generated
from monitoring.grafana import dashboard_json
from monitoring.lint import faults
from monitoring.panels import DASHBOARDS, OVERVIEW
from monitoring.queries import QUERIES
from vllm_headaware.observability.metric_families import FAMILIES


def test_generated_files_are_up_to_date() -> None:
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, f"run `make dashboards`: {path.name}"


def test_every_family_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert f"| `{family.full_name}` | {family.kind} |" in text


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
def test_dashboards_have_no_faults(dashboard: Any) -> None:
    assert faults(dashboard_json(dashboard)) == []


def test_every_query_is_on_a_panel() -> None:
    shown = {name for d in DASHBOARDS for panel in d.panels for name in panel.queries}
    assert shown == QUERIES.keys()


def test_queried_families_exist() -> None:
    known = {family.full_name + suffix for family in FAMILIES for suffix in _suffixes(family.kind)}
    import re

    for name, expression in QUERIES.items():
        for metric in re.findall(r"vllm_headaware_\w+", expression):
            assert metric in known, f"{name} asks for {metric}"


def _suffixes(kind: str) -> tuple[str, ...]:
    return ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda p: p.update(description=""), "description"),
        (lambda p: p["fieldConfig"]["defaults"].pop("unit"), "unit"),
        (lambda p: p["datasource"].update(uid="prometheus-1"), "data source"),
        (lambda p: p["gridPos"].update(y=8), "overlaps"),
        (lambda p: p["gridPos"].update(x=20), "wider"),
        (lambda p: p["targets"][0].update(expr="vllm_headaware_kv_used_bytes"), "selector"),
        (
            lambda p: p["targets"][0].update(expr='sum(vllm_headaware_kv_used_bytes{layer="1"})'),
            "not filtered",
        ),
        (
            lambda p: p["targets"][0].update(
                expr=QUERIES["bytes_freed"].replace("rate(", "sum_over_time(")
            ),
            "not in rate",
        ),
        (
            lambda p: p["targets"][0].update(
                expr=QUERIES["bytes_freed"].replace("bytes_freed_total", "kv_used_bytes")
            ),
            "of the gauge",
        ),
    ],
)
def test_the_lint_finds(change: Any, fault: str) -> None:
    dashboard = copy.deepcopy(dashboard_json(OVERVIEW))
    change(dashboard["panels"][0])
    assert any(fault in text for text in faults(dashboard)), faults(dashboard)


def test_json_is_plain() -> None:
    for path, text in generated().items():
        if path.suffix == ".json":
            assert json.loads(text)["schemaVersion"] == 39
