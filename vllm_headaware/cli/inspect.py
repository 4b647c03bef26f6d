"""vllm-headaware inspect: look at a head profile, in the terminal, as JSON or as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.policies.headaware import rank_heads
from vllm_headaware.profile.format import SCORES, HeadProfile

DESCRIPTION = """\
Show a head profile as a strip: one row per KV head, one column per layer. A digit is the tenth of all
KV heads that a head ranks in: 9 is the top tenth, those that lose most without history; 0 the last.
Nothing is measured; make a profile with `vllm-headaware profile MODEL`."""

EPILOG = """\
examples:
  vllm-headaware inspect ./model
  vllm-headaware inspect heads.json --score induction --png induction.png
  vllm-headaware inspect ./model --json | jq '.ranking[:5]'

scores:
  gate       how much the answer suffers if the head sees only sinks and window: the classes use it
  copy       how often the head points at the token that is being copied
  induction  attention to what followed the same token before: picks the wide-window class
"""

COLOURS = "#00224e #123570 #3b496c #575d6d #707173 #8a8678 #a59c74 #c3b369 #e1cc55 #fee838".split()
"""Cividis, ten steps: readable with colour-blindness and when printed in grey."""
NUM_TOP = 10


def add_parser(subparsers: Any) -> None:
    """Define `inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help="look at a head profile: heat strip, ranking, PNG",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="PROFILE_OR_MODEL", help="profile file, model folder or hub id"
    )
    parser.add_argument("--score", choices=SCORES, default="gate", help="which score (gate)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw it into a PNG file")


def run(args: argparse.Namespace) -> int:
    """Print, and draw if asked.

    Raises:
        HeadAwareError: no usable profile, or a picture that cannot be written.
    """
    profile = open_profile(args.source)
    if args.png is not None:
        from vllm_headaware.cli.heat_png import draw

        try:
            draw(profile, args.score, args.png)
        except (OSError, ValueError) as error:
            raise HeadAwareError(f"cannot write picture {args.png}: {error}") from error
    if args.json:
        print(json.dumps(make_report(profile, args.score)))
    else:
        show(profile, args.score, Console(highlight=False))
    return 0


def open_profile(source: str) -> HeadProfile:
    """A profile file, or the profile kept for a model; never measures.

    Raises:
        HeadAwareError: no such profile, an unusable one, or one of another model.
    """
    if Path(source).is_file() or source.endswith(".json"):
        return HeadProfile.load(source)
    from vllm_headaware.profile.locate import profile_places
    from vllm_headaware.profile.model_hash import model_hash, resolve_model_dir

    folder = resolve_model_dir(source)
    digest = model_hash(folder)
    for path in profile_places(folder, digest):
        if path.exists():
            profile = HeadProfile.load(path)
            profile.require_model(digest, path=path)
            return profile
    raise HeadAwareError(
        f"model {source} has no head profile yet; make one with `vllm-headaware profile {source}`"
    )


def make_report(profile: HeadProfile, score: str) -> dict[str, Any]:
    """Plain values: provenance, the score as [layer][KV head], and all heads from best to worst."""
    matrix = profile.scores[score]
    return {
        "model": vars(profile.model),
        "checksum": profile.checksum,
        "method": dict(profile.method),
        "agreement": dict(profile.agreement),
        "provenance": dict(profile.provenance),
        "score": score,
        "values": matrix,
        "ranking": [
            {"layer": layer, "kv_head": head, "score": matrix[layer][head]}
            for layer, head in ranking(profile, score)
        ],
    }


def ranking(profile: HeadProfile, score: str) -> list[tuple[int, int]]:
    """(layer, KV head) of every head, highest score first; ties as in the policy."""
    ranks = rank_heads(profile.scores[score])
    heads = [(y, h) for y, row in enumerate(ranks) for h in range(len(row))]
    return sorted(heads, key=lambda at: ranks[at[0]][at[1]])


def tenths(profile: HeadProfile, score: str) -> list[list[int]]:
    """[layer][KV head]: 9 for the top tenth of all heads, down to 0; 0 wherever the score is 0."""
    total = profile.model.num_layers * profile.model.num_kv_heads
    digits = [[9 - rank * 10 // total for rank in row] for row in rank_heads(profile.scores[score])]
    for row, values in zip(digits, profile.scores[score], strict=True):
        row[:] = [digit if value > 0 else 0 for digit, value in zip(row, values, strict=True)]
    return digits


def show(profile: HeadProfile, score: str, console: Console) -> None:
    """The strip, wrapped to the console's width, the top heads and where the numbers come from."""
    model, method = profile.model, profile.method
    console.print(
        f"{score} of {model.num_layers} layers x {model.num_kv_heads} KV heads of {model.name}",
        style="bold",
        markup=False,
    )
    digits = tenths(profile, score)
    label = len(f"head {model.num_kv_heads - 1} ")
    per_line = max((console.width - label) // 2, 5)
    for start in range(0, model.num_layers, per_line):
        layers = range(start, min(start + per_line, model.num_layers))
        console.print()
        console.print(_ruler(layers, label), style="dim")
        for head in range(model.num_kv_heads):
            line = Text(f"head {head}".ljust(label))
            for layer in layers:
                digit = digits[layer][head]
                ink = "#ffffff" if digit < 5 else "#000000"
                line.append(f"{digit} ", style=f"{ink} on {COLOURS[digit]}")
            console.print(line)
    top = ", ".join(f"{y}.{h} ({profile.scores[score][y][h]:.3g})" for y, h in _top(profile, score))
    console.print(f"\ntop {NUM_TOP} as layer.head (score): {top}", markup=False)
    halves = profile.agreement.get("split_half_spearman", {})
    if score in halves:
        console.print(f"split-half agreement of this ranking: {halves[score]:.2f} (1 is perfect)")
    facts = ", ".join(f"{name} {value}" for name, value in method.items())
    console.print(f"measured with {facts}", style="dim", markup=False)


def _top(profile: HeadProfile, score: str) -> list[tuple[int, int]]:
    return ranking(profile, score)[:NUM_TOP]


def _ruler(layers: range, label: int) -> str:
    """Layer numbers above every fifth column."""
    text = "layer".ljust(label)
    for layer in layers:
        if layer % 5 == 0:
            text = text.ljust(label + 2 * (layer - layers.start)) + str(layer)
    return text
