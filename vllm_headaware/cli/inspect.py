"""vllm-headaware inspect: look at a head profile, in the terminal or as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.format import SCORES, HeadProfile

DESCRIPTION = """\
Show the scores of a head profile as a layer x KV head map: digits 0 to 9 are tenths of the ranking,
9 the top tenth. Colour follows the digits. Nothing is measured."""

EPILOG = """\
examples:
  vllm-headaware inspect ./model
  vllm-headaware inspect profile.json --score induction --png heads.png
  vllm-headaware inspect ./model --html report.html

scores:
  answer     how long answers kept the head as heads were closed; ranks heads
  gate       what an answer loses if the head sees only sinks and window from the first token on;
             picks retrieval heads where prompts are read under windows
  copy       how often the head points at the token that is being copied
  induction  attention to what followed the same token before; picks the wide-window heads there
"""

FOREIGN = {
    "imported_from": "gates of DuoAttention: trained on needles, prompts read under windows too,"
    " most of them near 1, so that only their order says something; all scores are the same",
    "through_engine": "measured through vLLM: how far the head alone moves an answer's rows when it"
    " loses its history, not what answers lose; gate and answer are the same, copy is not measured",
}
"""What rankings mean that `vllm-headaware profile` did not train, by a key of their method."""

# Dark to light in steps that stay apart for colour-blind readers (viridis, xterm colours).
SHADES = (17, 18, 24, 30, 36, 35, 71, 107, 149, 227)


def add_parser(subparsers: Any) -> None:
    """Define `inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help="show a head profile as a layer x head map",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", help="profile file, or a model (folder or hub id) that has one")
    parser.add_argument("--score", choices=SCORES, default="answer")
    parser.add_argument("--png", type=Path, default=None, metavar="FILE", help="draw it instead")
    parser.add_argument(
        "--html", type=Path, default=None, metavar="FILE", help="write a report of all scores"
    )
    parser.add_argument("--json", action="store_true", help="print scores and deciles as JSON")


def run(args: argparse.Namespace) -> int:
    """Load the profile and show it.

    Raises:
        HeadAwareError: no usable profile there, or a picture that cannot be written.
    """
    profile = open_profile(args.profile)
    scores = profile.scores[args.score]
    deciles = rank_deciles(scores)
    if args.png:
        from vllm_headaware.profile.picture import draw

        try:
            draw(profile, args.score, args.png)
        except OSError as error:
            raise HeadAwareError(f"cannot write picture {args.png}: {error}") from error
        print(f"wrote {args.png}")
    elif args.html:
        from vllm_headaware.cli.profile import write_report

        write_report(profile, args.html)
    elif args.json:
        print(json.dumps({"score": args.score, "scores": scores, "deciles": deciles}))
    else:
        show(profile, args.score, deciles)
    return 0


def open_profile(source: str) -> HeadProfile:
    """A profile file, or the profile kept for a model; never measures.

    Raises:
        HeadAwareError: none there, an unusable one, or one of another model.
    """
    if Path(source).is_file() or source.endswith(".json"):
        return HeadProfile.load(source)
    from vllm_headaware.profile.locate import profile_places, shipped_place
    from vllm_headaware.profile.model_hash import model_hash, resolve_model_dir

    folder = resolve_model_dir(source)
    digest = model_hash(folder)
    for path in [*profile_places(folder, digest), shipped_place(digest)]:
        if path.exists():
            profile = HeadProfile.load(path)
            profile.require_model(digest, path=path)
            return profile
    raise HeadAwareError(
        f"model {source} has no head profile yet; make one with `vllm-headaware profile {source}`"
    )


def rank_deciles(scores: list[list[float]]) -> list[list[int]]:
    """Tenth of the ranking each `[layer][KV head]` falls in: 0 (lowest) to 9 (highest)."""
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
    per_line = max(console.width - 10, 10) // 10 * 10
    for start in range(0, model.num_layers, per_line):
        layers = range(start, min(start + per_line, model.num_layers))
        ruler = "".join(str(layer).ljust(10) for layer in layers[::10])
        console.print(f"{'layer':>9} {ruler.rstrip()}")
        for head in range(model.num_kv_heads):
            line = Text(f"{'head ' + str(head):>9} ")
            for layer in layers:
                shade = deciles[layer][head]
                ink = "black" if shade > 5 else "white"
                line.append(str(shade), style=f"{ink} on color({SHADES[shade]})")
            console.print(line)
    halves = profile.agreement.get("split_half_spearman", {})
    console.print(
        f"split-half agreement {halves.get(score, float('nan')):.2f}; measured against sink"
        f" {profile.method.get('sink')} + window {profile.method.get('window')}"
    )
    for sign, meaning in FOREIGN.items():
        if sign in profile.method:
            console.print(meaning)
    if found := profile.ablation:
        console.print(
            f"{found['share']:.0%} of the heads must keep everything for answers to lose at most"
            f" {found['bound']:g} nats per token"
        )
