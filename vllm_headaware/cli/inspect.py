"""vllm-headaware inspect: look at a head profile, in the terminal or as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vllm_headaware.profile.format import SCORES, HeadProfile

# Dark to light in steps that stay apart for colour-blind readers (viridis, xterm colours).
SHADES = (17, 18, 24, 30, 36, 35, 71, 107, 149, 227)


def add_parser(subparsers: Any) -> None:
    """Define `inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help="show a head profile as a layer x head map",
        description="Show the scores of a head profile as a layer x KV head map: digits 0 to 9 are"
        " tenths of the ranking, 9 the top tenth. Colour follows the digits.",
    )
    parser.add_argument("profile", help="profile file, or a model folder that has one")
    parser.add_argument("--score", choices=SCORES, default="gate")
    parser.add_argument("--png", type=Path, default=None, metavar="FILE", help="draw it instead")
    parser.add_argument("--json", action="store_true", help="print scores and deciles as JSON")


def run(args: argparse.Namespace) -> int:
    """Load the profile and show it.

    Raises:
        HeadAwareError: no usable profile there.
    """
    path = Path(args.profile)
    if path.is_dir():
        from vllm_headaware.profile.locate import profile_places
        from vllm_headaware.profile.model_hash import model_hash

        places = profile_places(path, model_hash(path))
        path = next((place for place in places if place.exists()), places[0])
    profile = HeadProfile.load(path)
    scores = profile.scores[args.score]
    deciles = rank_deciles(scores)
    if args.png:
        draw(profile, args.score, args.png)
        print(f"wrote {args.png}")
    elif args.json:
        print(json.dumps({"score": args.score, "scores": scores, "deciles": deciles}))
    else:
        show(profile, args.score, deciles)
    return 0


def rank_deciles(scores: list[list[float]]) -> list[list[int]]:
    """Tenth of the ranking each [layer][KV head] falls in: 0 (lowest) to 9 (highest)."""
    from vllm_headaware.policies.headaware import rank_heads

    total = sum(len(row) for row in scores)
    return [[9 - rank * 10 // total for rank in row] for row in rank_heads(scores)]


def show(profile: HeadProfile, score: str, deciles: list[list[int]]) -> None:
    """Print the map, one row per KV head and one column per layer."""
    console = Console(highlight=False)
    model = profile.model
    console.print(
        f"[bold]{model.name}[/bold]: {score} score, {model.num_layers} layers x"
        f" {model.num_kv_heads} KV heads; 9 = top tenth"
    )
    tens = "".join(str(layer // 10) if layer % 10 == 0 else " " for layer in range(len(deciles)))
    console.print(f"{'layer':>9} {tens}")
    for head in range(model.num_kv_heads):
        line = Text(f"{'head ' + str(head):>9} ")
        for row in deciles:
            shade = row[head]
            ink = "black" if shade > 5 else "white"
            line.append(str(shade), style=f"{ink} on color({SHADES[shade]})")
        console.print(line)
    halves = profile.agreement.get("split_half_spearman", {})
    console.print(
        f"split-half agreement {halves.get(score, float('nan')):.2f}; measured against sink"
        f" {profile.method.get('sink')} + window {profile.method.get('window')}"
    )


def draw(profile: HeadProfile, score: str, path: Path) -> None:
    """Draw the map as a PNG, layers from left to right."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    matrix = np.array(profile.scores[score]).T
    heads, layers = matrix.shape
    figure, axes = plt.subplots(figsize=(max(6, 0.32 * layers + 2), max(2.2, 0.32 * heads + 1.6)))
    image = axes.imshow(matrix, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_xlabel("layer")
    axes.set_ylabel("KV head")
    axes.set_yticks(range(heads))
    axes.set_title(f"{profile.model.name}: {score} score per KV head")
    figure.colorbar(image, ax=axes, label=score, pad=0.02)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
