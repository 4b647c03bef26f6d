"""What a load test found: numbers, verdict, Markdown, and one HTML file with plots."""

from __future__ import annotations

import html
from typing import Any

from loadtests.load_scenario import Scenario

ROWS = (
    ("median TTFT, ms", "median_ttft_ms"),
    ("p99 TTFT, ms", "p99_ttft_ms"),
    ("median TPOT, ms", "median_tpot_ms"),
    ("p99 TPOT, ms", "p99_tpot_ms"),
    ("median latency, ms", "median_e2el_ms"),
    ("p99 latency, ms", "p99_e2el_ms"),
    ("output tokens/s", "output_throughput"),
    ("duration, s", "duration"),
    ("good requests", "good_share"),
    ("peak KV held, MiB", "kv_peak_mib"),
    ("mean KV held, MiB", "kv_mean_mib"),
)


def summarise(scenario: Scenario, measured: dict[str, Any]) -> dict[str, float]:
    """The numbers of one server, and whether its SLO is met."""
    mib = scenario.kv_gib * 1024
    held = [share * mib for _, share in measured["kv"]] or [0.0]
    # request_goodput is in requests per second of the whole run.
    good = measured["request_goodput"] * measured["duration"] / scenario.requests
    numbers = {name: measured[name] for _, name in ROWS if name in measured}
    return {
        **numbers,
        "good_share": good,
        "kv_peak_mib": max(held),
        "kv_mean_mib": sum(held) / len(held),
        "slo_met": good >= scenario.goodput_share - 1e-9,
    }


def markdown(scenario: Scenario, summaries: dict[str, dict[str, float]], setting: str) -> str:
    """A table with a column per server, and the ratio of the first to the second."""
    names = list(summaries)
    head = ["", *names, *(["ratio"] if len(names) == 2 else [])]
    lines = [
        f"# {scenario.name}",
        "",
        scenario.description.strip(),
        "",
        setting,
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for title, key in ROWS:
        values = [summaries[name][key] for name in names]
        cells = [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values]
        if len(values) == 2:
            cells.append(f"{values[0] / values[1]:.2f}" if values[1] else "")
        lines.append("| " + " | ".join([title, *cells]) + " |")
    lines += [
        "",
        f"SLO: {scenario.goodput_share:.0%} of the requests with TTFT <= {scenario.ttft_ms:g} ms"
        f" and TPOT <= {scenario.tpot_ms:g} ms. "
        + "; ".join(
            f"{name}: {'met' if summaries[name]['slo_met'] else 'MISSED'}" for name in names
        )
        + ".",
        "",
    ]
    return "\n".join(lines)


def page(text: str, raw: dict[str, dict[str, Any]], scenario: Scenario) -> str:
    """One HTML file: the Markdown's table and SVG plots, nothing from elsewhere."""
    mib = scenario.kv_gib * 1024
    kv = {name: [(t, share * mib) for t, share in m["kv"]] for name, m in raw.items()}
    ttft = {name: _sorted_curve(m["ttfts"], 1000) for name, m in raw.items()}
    tpot = {
        name: _sorted_curve([sum(itl) / len(itl) for itl in m["itls"] if itl], 1000)
        for name, m in raw.items()
    }
    plots = (
        _plot("KV held, MiB, over seconds", kv)
        + _plot("TTFT, ms, over the share of requests that had less", ttft)
        + _plot("TPOT, ms, over the share of requests that had less", tpot)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(scenario.name)}'
        "</title><style>body{font:15px/1.5 system-ui;max-width:60rem;margin:1rem auto}"
        "td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ccc}"
        "td:first-child{text-align:left}svg{width:100%;height:15rem;border:1px solid #ccc}"
        "</style>" + _html_of(text) + plots + "</html>\n"
    )


COLOURS = ("#0072b2", "#e69f00")
DASHES = ("none", "6 4")


def _sorted_curve(values: list[float], scale: float) -> list[tuple[float, float]]:
    ordered = sorted(values)
    return [((i + 1) / len(ordered), value * scale) for i, value in enumerate(ordered)]


def _plot(title: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    points = [point for curve in curves.values() for point in curve] or [(1.0, 1.0)]
    right, top = (max(p[i] for p in points) or 1.0 for i in (0, 1))
    lines, legend = "", ""
    for (name, curve), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
        path = " ".join(f"{600 * x / right:.1f},{100 - 95 * y / top:.1f}" for x, y in curve)
        lines += (
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"'
            f' stroke-dasharray="{dash}" vector-effect="non-scaling-stroke"/>'
        )
        mark = "━" if dash == "none" else "┅"
        legend += f' <span style="color:{colour}">{mark}</span> {html.escape(name)}'
    return (
        f"<h2>{html.escape(title)}</h2><p>up to {top:,.4g}; to the right up to"
        f" {right:,.4g};{legend}</p>"
        f'<svg viewBox="0 0 600 100" preserveAspectRatio="none" role="img"'
        f' aria-label="{html.escape(title)}">{lines}</svg>'
    )


def _html_of(text: str) -> str:
    """The Markdown that markdown() writes, as HTML."""
    out, rows = [], []
    for line in text.splitlines():
        if line.startswith("|"):
            if not line.startswith("|---"):
                cells = [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
                rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        elif line.startswith("# "):
            out.append(f"<h1>{html.escape(line[2:])}</h1>")
        elif line:
            if rows:
                out.append("<table>" + "".join(rows) + "</table>")
                rows = []
            out.append(f"<p>{html.escape(line)}</p>")
    return "".join(out)
