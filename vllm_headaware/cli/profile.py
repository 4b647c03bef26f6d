"""vllm-headaware profile: measure the KV heads of a model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.format import SINK, WINDOW

if TYPE_CHECKING:
    from vllm_headaware.profile.format import HeadProfile

DESCRIPTION = """\
Score every KV head of a model: how much an answer suffers when the head sees only sinks and a
window from the first token on (gate), how long answers keep the head as heads are closed once the
prompt has been read in full (answer), how often it points at what is copied (copy), and how well it
finds repeats (induction). Then close heads in order of rank to see how many must keep everything.
The prompts are generated; no data set is needed. The result is kept next to the model, or in the
user's cache if that folder cannot be written; `--kv-head-profile auto` finds it in both. Scores
depend on sink and window: profile with those you will serve with, if they are narrower."""

EPILOG = """\
examples:
  vllm-headaware profile ./model
  vllm-headaware profile ./model -o profile.json --samples 40 --lengths 800,1600 --seed 7
  vllm-headaware profile ./model --dry-run                     # memory and time, beforehand
  vllm-headaware profile ./model --html report.html
  vllm-headaware profile ./model-awq --through-engine          # quantised weights: no gradients
  vllm-headaware profile ./model --through-engine --engine-args '{"tensor_parallel_size": 4}'
  vllm-headaware profile ./model --from-duo attn_patterns/MODEL/lr=...   # gates that were trained
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
        "--samples",
        type=int,
        default=None,
        metavar="N",
        help="questions, a third of them chains, the others needles; and a sixth as many answers of"
        " each of five kinds, half of them of twice the greatest length (24)",
    )
    parser.add_argument(
        "--lengths",
        default=None,
        metavar="N,N,...",
        help="their lengths in tokens (1000,1500,3000)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sink", type=int, default=SINK, metavar="TOKENS")
    parser.add_argument("--window", type=int, default=WINDOW, metavar="TOKENS")
    parser.add_argument(
        "--from-duo",
        type=Path,
        default=None,
        metavar="DIR",
        help="measure nothing: take the gates of a DuoAttention pattern",
    )
    parser.add_argument(
        "--through-engine",
        action="store_true",
        help="measure with forward passes in vLLM, for models too large to differentiate and for"
        " quantised weights: what an answer's rows lose of a head's output when it sees only sinks"
        " and window",
    )
    parser.add_argument(
        "--engine-args",
        type=json.loads,
        default=None,
        metavar="JSON",
        help="of --through-engine: arguments of vllm.LLM",
    )
    parser.add_argument(
        "--html", type=Path, default=None, metavar="FILE", help="also write a report"
    )
    parser.add_argument(
        "--bound",
        type=float,
        default=None,
        metavar="NATS",
        help="what an answer token may lose as heads are closed in order of rank (0.05)",
    )
    parser.add_argument(
        "--device",
        default=None,
        metavar="NAME",
        help="what computes: cpu, cuda, cuda:1, ... (a GPU where torch finds one, else cpu)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default=None,
        help="of weights and activations: bfloat16 takes half the memory (float32)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="measure everything anew; else what a run that was stopped has found is used",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="measure nothing: say how much memory and how long it would take",
    )
    parser.add_argument("--json", action="store_true", help="print a summary as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Profile and keep the result.

    Raises:
        HeadAwareError: a model or option that cannot be profiled, or no place to write.
    """
    from vllm_headaware.profile.locate import keep_profile, profile_places
    from vllm_headaware.profile.model_hash import resolve_model_dir

    model_dir = resolve_model_dir(args.model)
    if args.dry_run:
        return dry_run(args, model_dir)
    profile = imported(args, model_dir) if args.from_duo else measured(args, model_dir)
    places = [args.output] if args.output else profile_places(model_dir, profile.model.hash)
    path = keep_profile(profile, places)
    if args.html:
        write_report(profile, args.html)
    summary = {
        "profile": str(path),
        "checksum": profile.checksum,
        "method": profile.method,
        "agreement": profile.agreement,
        "ablation": profile.ablation,
        "seconds": profile.provenance.get("seconds"),
    }
    print(json.dumps(summary) if args.json else in_words(profile))
    return 0


def measured(args: argparse.Namespace, model_dir: Path) -> HeadProfile:
    """A new profile; see run()."""
    from vllm_headaware.profile.heap import FEW_TOKENS, give_back_large_blocks
    from vllm_headaware.profile.run import DEFAULT_BOUND, profile_model

    asked: dict[str, Any] = {
        "sink": args.sink,
        "window": args.window,
        "samples": samples_of(args),
        "lengths": lengths_of(args),
        "seed": args.seed,
    }
    if args.through_engine:
        return through_engine(args, model_dir, asked)
    if args.engine_args is not None:
        raise HeadAwareError("--engine-args is for --through-engine only")
    if max(asked["lengths"]) > FEW_TOKENS:
        give_back_large_blocks()
    return profile_model(
        model_dir,
        **asked,
        bound=DEFAULT_BOUND if args.bound is None else args.bound,
        device=device_of(args),
        dtype=args.dtype or "float32",
        resume=not args.fresh,
    )


def samples_of(args: argparse.Namespace) -> int:
    """Questions to ask."""
    from vllm_headaware.profile.run import DEFAULT_SAMPLES

    samples = DEFAULT_SAMPLES if args.samples is None else args.samples
    if samples < 2:
        raise HeadAwareError(f"--samples must be at least 2 to measure agreement, got {samples}")
    return samples


def device_of(args: argparse.Namespace) -> str:
    """What computes."""
    import torch

    return args.device or ("cuda" if torch.cuda.is_available() else "cpu")


def lengths_of(args: argparse.Namespace) -> Sequence[int]:
    """Of the questions."""
    from vllm_headaware.cli.plan import parse_lengths
    from vllm_headaware.profile.run import DEFAULT_LENGTHS

    try:
        return parse_lengths(args.lengths) if args.lengths else DEFAULT_LENGTHS
    except argparse.ArgumentTypeError as error:
        raise HeadAwareError(f"--lengths: {error}") from error


def dry_run(args: argparse.Namespace, model_dir: Path) -> int:
    """Say what measuring takes; see cli/profile_estimate.py."""
    from vllm_headaware.cli.profile_estimate import foresee
    from vllm_headaware.cli.profile_estimate import in_words as said

    if args.through_engine or args.from_duo:
        raise HeadAwareError("--dry-run is about measuring with gradients; leave other ways out")
    samples, lengths = samples_of(args), lengths_of(args)
    found = foresee(model_dir, samples, lengths, device_of(args), args.dtype or "float32")
    print(json.dumps(found) if args.json else said(found))
    return 0


def through_engine(args: argparse.Namespace, model_dir: Path, asked: dict[str, Any]) -> HeadProfile:
    """A new profile by forward passes in vLLM, with what is asked of any; see run()."""
    from vllm_headaware.vllm_compat.profiling.run import profile_through_engine

    if args.bound is not None or args.device or args.dtype:
        raise HeadAwareError(
            "--through-engine knows no --bound, and --device and --dtype are vLLM's: --engine-args"
        )
    if not isinstance(args.engine_args, dict | None):
        raise HeadAwareError("--engine-args must be a JSON object")
    return profile_through_engine(model_dir, **asked, engine_args=args.engine_args)


def imported(args: argparse.Namespace, model_dir: Path) -> HeadProfile:
    """The profile that a DuoAttention pattern amounts to; see run()."""
    from vllm_headaware.profile.duo import import_duo

    given = (args.samples, args.bound, args.lengths, args.device, args.dtype)
    if any(value is not None for value in given):
        raise HeadAwareError(
            "--from-duo measures nothing; leave --samples, --lengths, --bound, --device and --dtype"
            " out"
        )
    return import_duo(args.from_duo, model_dir)


def in_words(profile: HeadProfile) -> str:
    """One line about a profile; open heads keep everything."""
    shape = f"{profile.model.num_layers} layers x {profile.model.num_kv_heads} KV heads"
    if "imported_from" in profile.method:
        return f"{shape} with gates of {profile.method['imported_from']}"
    if "through_engine" in profile.method:
        agreement = profile.agreement["split_half_spearman"]["answer"]
        return (
            f"{shape} through vLLM in {profile.provenance['seconds']} s; split-half agreement of"
            f" the ranking {agreement:.2f} (below 0.8: use more --samples)"
        )
    halves, found = profile.agreement["split_half_spearman"], profile.ablation
    return (
        f"{shape} in {profile.provenance['seconds']} s; split-half agreement of the rankings"
        f" {halves['gate']:.2f} (gate) and {halves['answer']:.2f} (answer; below 0.8: use more"
        f" --samples); with {found['share']:.0%} of the heads open, answers lose at most"
        f" {found['bound']:g} nats per token"
    )


def write_report(profile: HeadProfile, path: Path) -> None:
    """Write the HTML report.

    Raises:
        HeadAwareError: the file cannot be written.
    """
    from vllm_headaware.profile.report import html

    try:
        path.write_text(html(profile), encoding="utf-8")
    except OSError as error:
        raise HeadAwareError(f"cannot write report {path}: {error}") from error
    print(f"report written to {path}", file=sys.stderr, flush=True)
