"""vllm-headaware profile: measure a model's KV heads and keep the result."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vllm_headaware.errors import HeadAwareError

DESCRIPTION = """\
Measure which KV heads of a model need long history. Generated prompts hide a number in filler text
and ask for it; every head is scored by how much the answer would suffer if the head saw only the
first SINK and the last WINDOW tokens (gate), by how often it points at the number while it is written
(copy), and by how it follows repeated noise (induction). No data set is needed.

The profile is kept next to the model, or in the user's cache if the model folder cannot be written;
`vllm serve MODEL --kv-policy headaware` finds it in both."""

EPILOG = """\
examples:
  vllm-headaware profile ./model
  vllm-headaware profile ./model -o heads.json --lengths 1000,2000,4000 --samples 30
  vllm-headaware profile ./model --json | jq .agreement

The split-half agreement says how far the ranking can be trusted: below 0.8, use more --samples.
Scores depend on SINK and WINDOW: profile with the ones you will serve with.
"""
TRUSTED = 0.8


def add_parser(subparsers: Any) -> None:
    """Define `profile`; defaults that are None are those of profile_model."""
    parser = subparsers.add_parser(
        "profile",
        help="measure which KV heads of a model need long history",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model folder or hub id")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the profile here")
    parser.add_argument("--samples", type=count, metavar="N", help="calibration prompts")
    parser.add_argument(
        "--lengths", type=lengths, metavar="N,N,...", help="prompt lengths in tokens, used in turn"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts (0)")
    parser.add_argument(
        "--sink", type=count, default=64, metavar="TOKENS", help="first tokens of a local head (64)"
    )
    parser.add_argument(
        "--window",
        type=count,
        default=256,
        metavar="TOKENS",
        help="last tokens of a local head (256)",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress bar on stderr (default: on a terminal)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure, keep, and say how far the ranking can be trusted.

    Raises:
        HeadAwareError: a model that cannot be measured, or a place that cannot be written.
    """
    if args.output is not None and not args.output.parent.is_dir():
        raise HeadAwareError(
            f"cannot write {args.output}: there is no folder {args.output.parent}; make it first"
        )
    from vllm_headaware.profile.locate import keep_profile, profile_places
    from vllm_headaware.profile.model_hash import resolve_model_dir
    from vllm_headaware.profile.run import profile_model

    folder = resolve_model_dir(args.model)
    chosen = {name: getattr(args, name) for name in ("samples", "lengths")}
    profile = profile_model(
        folder,
        sink=args.sink,
        window=args.window,
        seed=args.seed,
        progress=args.progress,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    places = [args.output] if args.output else profile_places(folder, profile.model.hash)
    path = keep_profile(profile, places)
    halves = profile.agreement["split_half_spearman"]
    if args.json:
        report = {"path": str(path), "checksum": profile.checksum}
        for part in ("method", "agreement", "provenance"):
            report[part] = dict(getattr(profile, part))
        print(json.dumps(report))
        return 0
    model = profile.model
    print(
        f"{model.name}: {model.num_layers} layers x {model.num_kv_heads} KV heads measured in"
        f" {profile.provenance['seconds']:.0f} s"
    )
    print(
        "split-half agreement (Spearman): " + ", ".join(f"{n} {v:.2f}" for n, v in halves.items())
    )
    if halves["gate"] < TRUSTED:
        print(f"the gate ranking is shaky (below {TRUSTED}): profile again with more --samples")
    print(f"next: vllm-headaware inspect {path}")
    return 0


def count(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def lengths(text: str) -> list[int]:
    """Comma-separated token counts.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    return [count(part.strip()) for part in text.split(",")]
