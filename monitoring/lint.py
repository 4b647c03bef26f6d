"""What a dashboard's JSON must keep to, checked without a Grafana."""

from __future__ import annotations

import itertools
import re
from typing import Any

UNITS = {"bytes", "Bps", "percentunit", "short", "s", "reqps", "none"}


def faults(dashboard: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a dashboard, in sentences."""
    found = []
    panels = dashboard["panels"]
    for panel in panels:
        title = panel.get("title", "?")
        found += [f"{title}: {fault}" for fault in _panel_faults(panel)]
    for one, other in itertools.combinations(panels, 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            found.append(f"{one['title']} overlaps {other['title']}")
    for name, values in (("title", panels), ("id", panels)):
        if len({panel[name] for panel in values}) < len(values):
            found.append(f"two panels have the same {name}")
    if dashboard["templating"]["list"][0]["type"] != "datasource":
        found.append("the first variable is not the data source")
    return found


def _panel_faults(panel: dict[str, Any]) -> list[str]:
    found = []
    if len(panel.get("description", "")) < 20:
        found.append("no description")
    if panel["fieldConfig"]["defaults"].get("unit") not in UNITS:
        found.append("no unit, or an unknown one")
    place = panel["gridPos"]
    if place["x"] + place["w"] > 24:
        found.append("wider than the page")
    for where in (panel, *panel["targets"]):
        if where["datasource"]["uid"] != "${datasource}":
            found.append("a fixed data source")
    for target in panel["targets"]:
        found += _expression_faults(target["expr"])
    return found


def _expression_faults(expression: str) -> list[str]:
    found = []
    for name, labels in re.findall(r"\b(vllm[:_]\w+)\{(.*?)\}", expression):
        if not all(f'{label}=~"$' in labels for label in ("model_name", "engine", "instance")):
            found.append(f"{name} is not filtered by the variables")
    for name in re.findall(r"\bvllm[:_]\w+(?!\w)(?!\{)", expression):
        found.append(f"{name} has no selector")
    counters = r"vllm[:_]\w+_(?:total|bucket|sum|count)\{[^}]*\}"
    for match in re.finditer(counters, expression):
        window = expression[match.end() :].startswith("[$__rate_interval]")
        if not window or not re.search(r"(rate|increase)\($", expression[: match.start()]):
            found.append("a counter that is not in rate() or increase() over $__rate_interval")
    for match in re.finditer(r"(rate|increase)\((vllm[:_]\w+)\{", expression):
        if not re.search(r"_(total|bucket|sum|count)$", match.group(2)):
            found.append(f"{match.group(1)}() of the gauge {match.group(2)}")
    return found


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return (
        a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    )
