"""A roofline of decode attention from the lines of `python -m checks.gpu`, or of checks.gpu.tune.

    python -m checks.gpu.plot docs/gpu-h200.jsonl docs/gpu-h200.png

Every point is one layer's attention of a step: bytes of KV that it must read, and how long it took.
The line is the most bytes per second that anything in the file reached.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vllm_headaware.eval.figure import new_figure

STYLE = {
    "stock": ("FlashAttention 3, 16 bit", "#555555", "s"),
    "vllm int8": ("vLLM int8", "#b08900", "^"),
    "vllm int4": ("vLLM int4", "#a2484b", "v"),
    "ours k8v4": ("k8v4, first kernels", "#8fa3c8", "o"),
    "tuned": ("k8v4, rewritten", "#00224e", "o"),
}
TUNED = "tune decode"


def points(lines: list[dict[str, Any]]) -> dict[str, list[tuple[str, float, float]]]:
    """Load, bytes and microseconds of every side; of what was tuned the quickest sizes."""
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in STYLE}
    measured = [x for x in lines if x.get("part") == "decode" and "us" in x]
    for x in measured:
        if x["side"] in found:
            found[x["side"]].append((x["load"], x["bytes_read"], x["us"]))
    for load, size, _ in found["ours k8v4"]:
        times = [
            us
            for x in lines
            if x.get("part") == TUNED
            for name, us in x.items()
            if name.startswith(f"{load},") and isinstance(us, float)
        ]
        if times:
            found["tuned"].append((load, size, min(times)))
    return found


def draw(found: dict[str, list[tuple[str, float, float]]], card: str) -> Any:
    """The figure."""
    figure, (axis,) = new_figure(height=4.6)
    every = [point for own in found.values() for point in own]
    best = max(size / us for _, size, us in every)
    sizes = [min(size for _, size, _ in every), max(size for _, size, _ in every)]
    label = f"{best / 1e6:.1f} TB/s"
    axis.plot([s / 1e6 for s in sizes], [s / best for s in sizes], color="#999999", lw=1, ls="--")
    axis.annotate(label, (sizes[0] / 1e6, 1.6 * sizes[0] / best), fontsize=8, color="#777777")
    for name, own in found.items():
        if own:
            text, colour, mark = STYLE[name]
            x, y = [size / 1e6 for _, size, _ in own], [us for _, _, us in own]
            axis.scatter(x, y, color=colour, marker=mark, s=28, label=text)
    for load, size, us in found["stock"]:
        offset = (5, 5) if us > 1.1 * size / best else (5, -11)
        axis.annotate(load, (size / 1e6, us), fontsize=8, xytext=offset, textcoords="offset points")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="KV bytes that a layer reads for one token of each request (MB)",
        ylabel="time (us)",
    )
    axis.set_title(f"Decode attention of one layer, {card}", loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", type=Path, help="JSON lines")
    parser.add_argument("picture", type=Path, help="PNG to write")
    args = parser.parse_args()
    lines = [
        json.loads(x) for x in args.lines.read_text(encoding="utf-8").splitlines() if x[:1] == "{"
    ]
    card = next(x["card"] for x in lines if "card" in x)
    figure = draw(points(lines), card)
    figure.savefig(args.picture, format="png", metadata={"Software": "vllm-headaware"})


if __name__ == "__main__":
    main()
