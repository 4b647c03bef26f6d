"""vllm-headaware profile: measure the KV heads of a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Score every KV head of a model: how much an answer suffers when the head sees only sinks and a
window (gate), how often it points at what is copied (copy), and how well it finds repeats
(induction). The prompts are generated; no data set is needed. The result is kept next to the model,
or in the user's cache if that folder cannot be written; `--kv-head-profile auto` finds it in both.
Scores depend on sink and window: profile with those you will serve with."""

EPILOG = """\
examples:
  vllm-headaware profile ./model
  vllm-headaware profile ./model -o profile.json --samples 40 --lengths 800,1600 --seed 7
"""


def add_parser(subparsers: Any) -> None:
    """Define `profile`."""
    parser = subparsers.add_parser(
        "profile",
        help="score every KV head of a model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="model folder or hub id")
    parser.add_argument("-o", "--output", type=Path, default=None, metavar="FILE")
    parser.add_argument(
        "--samples", type=int, default=None, metavar="N", help="needle prompts (21)"
    )
    parser.add_argument(
        "--lengths", default=None, metavar="N,N,...", help="their lengths in tokens (600,900,1400)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sink", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--window", type=int, default=256, metavar="TOKENS")
    parser.add_argument("--json", action="store_true", help="print a summary as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Profile and keep the result.

    Raises:
        HeadAwareError: a model or option that cannot be profiled, or no place to write.
    """
    from vllm_headaware.cli.plan import parse_lengths
    from vllm_headaware.errors import HeadAwareError
    from vllm_headaware.profile.locate import keep_profile, profile_places
    from vllm_headaware.profile.model_hash import resolve_model_dir
    from vllm_headaware.profile.run import DEFAULT_LENGTHS, DEFAULT_SAMPLES, profile_model

    try:
        lengths = parse_lengths(args.lengths) if args.lengths else DEFAULT_LENGTHS
    except argparse.ArgumentTypeError as error:
        raise HeadAwareError(f"--lengths: {error}") from error
    samples = DEFAULT_SAMPLES if args.samples is None else args.samples
    if samples < 2:
        raise HeadAwareError(f"--samples must be at least 2 to measure agreement, got {samples}")
    model_dir = resolve_model_dir(args.model)
    profile = profile_model(
        model_dir,
        sink=args.sink,
        window=args.window,
        samples=samples,
        lengths=lengths,
        seed=args.seed,
    )
    places = [args.output] if args.output else profile_places(model_dir, profile.model.hash)
    path = keep_profile(profile, places)
    summary = {
        "profile": str(path),
        "checksum": profile.checksum,
        "method": profile.method,
        "agreement": profile.agreement,
        "seconds": profile.provenance["seconds"],
    }
    if args.json:
        print(json.dumps(summary))
    else:
        halves = profile.agreement["split_half_spearman"]
        print(
            f"{profile.model.num_layers} layers x {profile.model.num_kv_heads} KV heads in"
            f" {summary['seconds']} s; split-half agreement of the gate ranking"
            f" {halves['gate']:.2f} (below 0.8: use more --samples)"
        )
    return 0
