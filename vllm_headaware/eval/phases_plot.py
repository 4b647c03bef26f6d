"""The three phases as pictures."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from vllm_headaware.eval.figure import new_figure

COLOURS = {"full": "#555555", "headaware": "#00224e", "streamingllm": "#b08900", "h2o": "#a2484b"}
MARKS = {"full": "s", "headaware": "o", "streamingllm": "^", "h2o": "v"}


def draw_phases(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write phase1.png, phase2.png and phase3.png of the phases that a report has.

    Raises:
        OSError: a file cannot be written.
    """
    draw = {"1": _lengths, "2": _budgets, "3": _ablation}
    paths = []
    for phase, result in report["phases"].items():
        path = folder / f"phase{phase}.png"
        figure = draw[phase](result)
        figure.suptitle(report["model"], x=0.01, ha="left", fontsize=11)
        figure.savefig(path, format="png", metadata={"Software": "vllm-headaware"})
        paths.append(path)
    return paths


def _lengths(result: dict[str, Any]) -> Any:
    figure, (memory, score) = new_figure(2)
    for name, colour in COLOURS.items():
        rows = [row for row in result["rows"] if row["method"] == name]
        tokens = [row["tokens"] for row in rows]
        style = {"color": colour, "marker": MARKS[name], "label": name, "markersize": 5}
        memory.plot(tokens, [row["bytes"] / 1e6 for row in rows], **style)
        score.plot(tokens, [row["score"] for row in rows], **style)
    memory.set(xlabel="tokens", ylabel="KV bytes of one request (MB)", ylim=(0, None))
    score.set(xlabel="tokens", ylabel=f"score: {result['rows'][0]['task']}", ylim=(-0.03, 1.05))
    memory.legend(frameon=False, fontsize=8)
    return figure


def _budgets(result: dict[str, Any]) -> Any:
    lengths = list(dict.fromkeys(row["tokens"] for row in result["rows"]))
    figure, axes = new_figure(len(lengths))
    for axis, tokens in zip(axes, lengths, strict=True):
        own = [row for row in result["rows"] if row["tokens"] == tokens]
        full = fmean(row["score"] for row in own if row["method"] == "full")
        axis.axhline(full, color=COLOURS["full"], linestyle="--", linewidth=1.2, label="full")
        for name in ("headaware", "streamingllm", "h2o"):
            points: dict[int, list[float]] = {}
            for row in own:
                method, _, budget = row["method"].partition(" ")
                if method == name:
                    points.setdefault(int(budget), []).append(row["score"])
            means = [fmean(scores) for scores in points.values()]
            axis.plot(
                list(points), means, color=COLOURS[name], marker=MARKS[name], label=name, alpha=0.9
            )
        axis.set(xlabel="budget, tokens per layer", title=f"{tokens:,} tokens", ylim=(-0.03, 1.05))
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(points), [str(budget) for budget in points])
        axis.minorticks_off()
    axes[0].set_ylabel("mean score over tasks")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _ablation(result: dict[str, Any]) -> Any:
    names = list(dict.fromkeys(row["method"] for row in result["rows"]))
    figure, (score, ratio) = new_figure(2, 0.9 + 0.32 * len(names))
    means = [fmean(r["score"] for r in result["rows"] if r["method"] == name) for name in names]
    ratios = [
        next(r["bytes_ratio"] for r in result["rows"] if r["method"] == name) for name in names
    ]
    whole = next((i for i, name in enumerate(names) if "=" in name), 0)
    colours = ["#00224e" if i == whole else "#9aa5b8" for i in range(len(names))]
    for axis, values, label in (
        (score, means, "mean score over tasks"),
        (ratio, ratios, "times fewer bytes than full"),
    ):
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel(label)
        axis.margins(x=0.12)
    ratio.set_yticklabels([])
    return figure
