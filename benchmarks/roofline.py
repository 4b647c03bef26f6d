"""Draw what bench_attention.py measured against what the machine can do.

    python -m benchmarks.bench_attention --json | tail -1 | python -m benchmarks.roofline out.png

Each point is one KV format decoding 8 requests of 8k: to the right the multiply-adds per byte read,
upward the multiply-adds per second. The slanted line is read bandwidth; the level lines are the
multiply-add rates of float32 and of integer dot products.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def points(result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """(multiply-adds per byte, multiply-adds per second) of every format in the largest case."""
    case = result["cases"][-1]
    bandwidth, rate = result["read_bytes_per_second"], result["multiply_adds_per_second"]
    products = case["native"]["float32"]["floor_arithmetic_ms"] * rate
    found = {}
    for name, row in case["native"].items():
        intensity = products / (row["floor_bytes_ms"] * bandwidth)
        found[name] = (intensity, products / row["ms"])
    for name, ms in (
        ("float32", case["stock_float32_ms"]),
        ("bfloat16", case["stock_bfloat16_ms"]),
    ):
        found[f"vLLM's op, {name}"] = (found[name][0], products / ms)
    return found


def main() -> None:
    """Read JSON from stdin, write the picture."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    result = json.load(sys.stdin)
    bandwidth, rate = result["read_bytes_per_second"], result["multiply_adds_per_second"]
    figure, axes = plt.subplots(figsize=(8, 5))
    x = np.geomspace(0.3, 20, 50)
    for level, label in ((rate, "float32 multiply-adds"), (2 * rate, "integer dot products")):
        axes.plot(x, np.minimum(bandwidth * x, level) / 1e9, label=f"roof: {label}")
    for name, (intensity, speed) in points(result).items():
        own = not name.startswith("vLLM")
        axes.plot(intensity, speed / 1e9, "o" if own else "x", color="black")
        axes.annotate(
            name,
            (intensity, speed / 1e9),
            xytext=(6, -4 if own else -12),
            textcoords="offset points",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="multiply-adds per byte of KV cache read",
        ylabel="10⁹ multiply-adds per second",
        title=f"Decode attention, 8 requests of 8k, {result['instruction_set']},"
        f" {result['threads']} threads",
    )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(sys.argv[1], dpi=120)


if __name__ == "__main__":
    main()
