"""Draw each panel's data from Prometheus into a picture, for a person without a Grafana.

This is not Grafana: it shows the same queries, titles and units, but not how Grafana will look.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from monitoring.panels import Dashboard, Panel
from monitoring.prometheus import Prometheus
from monitoring.queries import QUERIES, outside_grafana

INCHES_PER_COLUMN = 0.7
COLUMNS = 2


def draw(dashboard: Dashboard, prometheus: Prometheus, start: float, end: float, to: Path) -> None:
    """Write a PNG with one plot per panel, over [start, end] in Unix seconds.

    Panels that show one moment show the one in which most bytes were held.
    """
    (used,) = prometheus.query_range("sum(vllm_headaware_kv_used_bytes)", start, end)
    peak = max(used["values"], key=lambda point: float(point[1]))[0]
    rows = math.ceil(len(dashboard.panels) / COLUMNS)
    figure = Figure(figsize=(13, 3.4 * rows), layout="constrained")
    figure.suptitle(f"{dashboard.title} (preview of the queries' data; this is not Grafana)")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis in axes[len(dashboard.panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes, dashboard.panels, strict=False):
        axis.set_title(panel.title, fontsize=10)
        axis.tick_params(labelsize=7)
        first, last = (start, end) if panel.kind in ("timeseries", "heatmap") else (peak, peak)
        series = {
            (name, legend): prometheus.query_range(outside_grafana(QUERIES[name]), first, last)
            for name, legend in panel.queries.items()
        }
        _DRAW.get(panel.kind, _lines)(axis, panel, series, end)
    figure.savefig(to, dpi=80)


def unit_text(value: float, unit: str) -> str:
    """A number as a person reads it."""
    if unit in ("bytes", "Bps"):
        power = min(int(math.log2(max(abs(value), 1)) // 10), 4)
        text = f"{value / 1024**power:.3g} {['', 'Ki', 'Mi', 'Gi', 'Ti'][power]}B"
        return text + ("/s" if unit == "Bps" else "")
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    return f"{value:,.4g}" + {"s": " s", "reqps": " /s"}.get(unit, "")


def _label(legend: str, metric: dict[str, str]) -> str:
    for name, value in metric.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


def _lines(axis: Any, panel: Panel, series: Any, end: float) -> None:
    count = 0
    for (_, legend), results in series.items():
        for result in results:
            points = [(float(t) - end, float(v)) for t, v in result["values"]]
            axis.plot(*zip(*points, strict=True), label=_label(legend, result["metric"]))
            count += 1
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: unit_text(v, panel.unit)))
    axis.set_xlabel("seconds before the end", fontsize=7)
    if 0 < count <= 8:
        axis.legend(fontsize=7, loc="best")


def _values(axis: Any, panel: Panel, series: Any, end: float) -> None:
    """The last value of each series, in large letters."""
    texts = [
        f"{_label(legend, r['metric'])}: {unit_text(float(r['values'][-1][1]), panel.unit)}"
        for (_, legend), results in series.items()
        for r in results
    ]
    axis.axis("off")
    axis.text(0.5, 0.5, "\n".join(texts) or "no data", ha="center", va="center", fontsize=16)


def _bars(axis: Any, panel: Panel, series: Any, end: float) -> None:
    ((_, legend), results) = next(iter(series.items()))
    last = sorted((_label(legend, r["metric"]), float(r["values"][-1][1])) for r in results)
    axis.barh([name for name, _ in last], [value for _, value in last])
    axis.tick_params(axis="y", labelsize=5)
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: unit_text(v, panel.unit)))


def _matrix(axis: Any, panel: Panel, series: Any, end: float) -> None:
    cells = {
        (int(r["metric"]["kv_head"]), int(r["metric"]["layer"])): float(r["values"][-1][1])
        for results in series.values()
        for r in results
    }
    heads, layers = (1 + max(key[i] for key in cells) for i in (0, 1))
    grid = [[cells.get((h, y), math.nan) for y in range(layers)] for h in range(heads)]
    shown = axis.imshow(grid, aspect="auto", cmap="cividis")
    axis.set_xlabel("layer", fontsize=7)
    axis.set_ylabel("KV head", fontsize=7)
    ticks = FuncFormatter(lambda v, _: unit_text(v, panel.unit))
    axis.figure.colorbar(shown, ax=axis, format=ticks).ax.tick_params(labelsize=7)


def _table(axis: Any, panel: Panel, series: Any, end: float) -> None:
    axis.axis("off")
    rows = [r["metric"] for results in series.values() for r in results]
    if rows:
        names = sorted(rows[0])
        axis.table([[row.get(n, "") for n in names] for row in rows], colLabels=names, loc="center")


def _heatmap(axis: Any, panel: Panel, series: Any, end: float) -> None:
    """Cumulative buckets as a heat map: each bucket less the one below it."""
    results = [r for results in series.values() for r in results]
    results.sort(key=lambda r: float(r["metric"]["le"]))
    if not results:
        return
    columns = [[float(v) for _, v in r["values"]] for r in results]
    grid = [
        [b - a for a, b in zip(low, high, strict=False)]
        for low, high in zip([[0.0] * len(columns[0]), *columns], columns, strict=False)
    ]
    axis.imshow(grid, aspect="auto", origin="lower", cmap="cividis")
    axis.set_yticks(range(len(results)), [r["metric"]["le"] for r in results])
    axis.set_ylabel("tokens, up to", fontsize=7)


_DRAW = {
    "stat": _values,
    "gauge": _values,
    "bargauge": _bars,
    "matrix": _matrix,
    "table": _table,
    "heatmap": _heatmap,
}
