"""Grafana's JSON from the panels. Schema version 39, which Grafana 10.4 to 13 read."""

from __future__ import annotations

from typing import Any

from monitoring.panels import Dashboard, Panel
from monitoring.queries import QUERIES

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
SCHEMA_VERSION = 39
VARIABLES = ("model_name", "instance", "engine")


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """One dashboard, ready to be imported or provisioned."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["vllm", "headaware"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "tags": ["headaware"],
                "title": "headaware",
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_datasource(), *map(_variable, VARIABLES)]},
        "panels": _placed(dashboard.panels),
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }


def _variable(label: str) -> dict[str, Any]:
    return {
        "name": label,
        "label": label.replace("_", " "),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {
            "query": f"label_values(vllm_headaware_info, {label})",
            "refId": label,
        },
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    """Panels from left to right, a new row when the next one does not fit."""
    placed, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        grid = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        placed.append({"id": number, "gridPos": grid, **_panel(panel)})
        x, row_height = x + panel.width, max(row_height, panel.height)
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    kind, options, custom, transformations = _look(panel)
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": custom}
    defaults["min"] = 0 if panel.unit != "percentunit" or panel.max else None
    defaults["max"] = panel.max
    if kind == "gauge":
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [
                {"color": "green", "value": None},
                {"color": "orange", "value": 0.9},
                {"color": "red", "value": 0.98},
            ],
        }
    if kind == "table" and panel.kind == "matrix":
        defaults["color"] = {"mode": "continuous-BlYlRd"}
    return {
        "type": kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {name: value for name, value in defaults.items() if value is not None},
            "overrides": [],
        },
        "options": options,
        "targets": [
            _target(panel, name, legend, ref)
            for (name, legend), ref in zip(panel.queries.items(), "ABCDEF", strict=False)
        ],
        **({"transformations": transformations} if transformations else {}),
    }


def _target(panel: Panel, name: str, legend: str, ref: str) -> dict[str, Any]:
    instant = panel.kind in ("bargauge", "table", "matrix")
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "expr": QUERIES[name],
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
        "format": {"table": "table", "matrix": "table", "heatmap": "heatmap"}.get(
            panel.kind, "time_series"
        ),
    }


def _look(panel: Panel) -> tuple[str, dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Grafana's panel type, options, custom field options and transformations."""
    last = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel.kind == "timeseries":
        custom: dict[str, Any] = {"fillOpacity": 30 if panel.stacked else 8, "lineWidth": 1}
        if panel.stacked:
            custom["stacking"] = {"mode": "normal", "group": "A"}
        tooltip = {"mode": "multi", "sort": "desc"}
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        return "timeseries", {"tooltip": tooltip, "legend": legend}, custom, []
    if panel.kind == "bargauge":
        return "bargauge", {**last, "orientation": "horizontal", "displayMode": "basic"}, {}, []
    if panel.kind == "heatmap":
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "cellGap": 1}
        return "heatmap", options, {}, []
    if panel.kind == "matrix":
        to_matrix = {
            "id": "groupingToMatrix",
            "options": {
                "columnField": "kv_head",
                "rowField": "layer",
                "valueField": "Value",
                "emptyValue": "null",
            },
        }
        cells = {"cellOptions": {"type": "color-background", "mode": "basic"}}
        return "table", {"showHeader": True}, cells, [to_matrix]
    if panel.kind == "table":
        tidy = {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}
        return "table", {"showHeader": True}, {}, [tidy]
    return panel.kind, last, {}, []
