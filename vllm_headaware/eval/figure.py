"""What all pictures of an evaluation are drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def new_figure(columns: int = 1, height: float = 3.4) -> tuple[Any, Sequence[Any]]:
    """A figure without a display, and its axes side by side; height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for own in axes:
        own.spines[["top", "right"]].set_visible(False)
    return figure, axes
