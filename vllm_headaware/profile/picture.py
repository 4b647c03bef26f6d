"""A head profile as a picture: where the heads are, and how fast scores fall from head to head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_headaware.profile.format import HeadProfile

LABELS = {
    "gate": "gate saliency (share of the model's total)",
    "answer": "how open the gate of the answer's rows stayed while gates were trained (0 to 1)",
    "copy": "retrieval-copy score (share of needle tokens pointed at)",
    "induction": "induction score (mean attention to the follower)",
}
INK, ACCENT = "#333333", "#00224e"


def draw(profile: HeadProfile, score: str, path: Path) -> None:
    """Write a PNG: heat map of [KV head, layer] above the sorted scores.

    Raises:
        OSError, ValueError: the file cannot be written.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = np.array(profile.scores[score]).T  # [KV heads, layers]
    heads, layers = values.shape
    width = min(max(7.0, 1.8 + 0.3 * layers), 14.0)
    heat_height = min(max(1.2, 0.3 * heads), 12.0)
    figure = Figure(figsize=(width, heat_height + 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    heat, curve = figure.subplots(2, 1, height_ratios=[heat_height, 2.6])

    top = float(values.max()) or 1.0
    # The square root lets small scores be told apart; the colour bar shows what is what.
    image = heat.imshow(values, cmap="cividis", norm=PowerNorm(0.5, 0, top), aspect="auto")
    heat.set(xlabel="layer", ylabel="KV head")
    heat.set_xticks(np.arange(-0.5, layers), minor=True)
    heat.set_yticks(np.arange(-0.5, heads), minor=True)
    heat.grid(which="minor", color="white", linewidth=1)
    heat.tick_params(which="minor", length=0)
    for axis in (heat.xaxis, heat.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=16, min_n_ticks=1))
    heat.set_title(f"{profile.model.name}: {LABELS[score]}", loc="left", color=INK, fontsize=11)
    bar = figure.colorbar(image, ax=heat, pad=0.01, fraction=0.05)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=4))

    _draw_curve(curve, np.sort(values.ravel())[::-1], score)
    for axes in (heat, curve):
        for spine in axes.spines.values():
            spine.set_visible(axes is curve and spine.spine_type in ("left", "bottom"))
    figure.savefig(path, format="png", metadata={"Software": "vllm-headaware"})


def _draw_curve(axes: Any, ordered: Any, score: str) -> None:
    """Scores from the best head to the last, with the best quarter marked."""
    count = len(ordered)
    edges = [100 * rank / count for rank in range(count + 1)]
    axes.stairs(ordered, edges, fill=True, color=ACCENT, alpha=0.15)
    axes.stairs(ordered, edges, color=ACCENT, linewidth=1.5)
    kept = ordered[: -(-count // 4)].sum() / (ordered.sum() or 1.0)
    axes.axvline(25, color="#b08900", linewidth=1.2, linestyle="--")
    axes.annotate(
        f"top 25 % of heads hold {100 * kept:.0f} % of the score",
        (25, ordered[0] or 1.0),
        xytext=(6, -4),
        textcoords="offset points",
        va="top",
        color=INK,
        fontsize=9,
    )
    axes.set(xlabel="KV heads, best first (%)", ylabel=score, xlim=(0, 100))
    axes.set_ylim(bottom=0)
