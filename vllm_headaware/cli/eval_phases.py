"""vllm-headaware eval phases: the three phases, as tables and plots."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Phase 1: bytes of one request against length, and whether the needle is still found. Phase 2: all
methods within the same budgets. Phase 3: the policy put together part by part. Writes phases.json,
phases.md and a plot of each phase into a folder per model. A run that was stopped goes on where it
was."""

EPILOG = """\
examples:
  vllm-headaware eval phases ./model -o results
  vllm-headaware eval phases ./one ./other --phases 1,3 --samples 12
"""


def add_parser(subparsers: Any) -> None:
    """Define `eval phases`."""
    from vllm_headaware.cli.eval_options import DEMO_MODEL, add_run_options
    from vllm_headaware.cli.plan import parse_lengths
    from vllm_headaware.vllm_compat.front_end.flags import add_flags

    parser = subparsers.add_parser(
        "phases",
        help="memory against length, budgets, ablation; twenty minutes on two cores",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", default=[DEMO_MODEL], help="model folders")
    parser.add_argument("-o", "--output", type=Path, default=Path("phases"), metavar="DIR")
    parser.add_argument("--phases", type=parse_lengths, default=[1, 2, 3], metavar="N,N,...")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="prompts per task (3)")
    parser.add_argument("--texts", type=int, default=2, metavar="N", help="passages for KL (2)")
    add_run_options(parser)
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the phases of every model; see cli/eval.py."""
    from vllm_headaware.cli.eval_options import journal_of, policy_and_profile
    from vllm_headaware.config import KVPolicyConfig
    from vllm_headaware.errors import HeadAwareError
    from vllm_headaware.eval.phases_report import markdown
    from vllm_headaware.eval.phases_run import PHASES, run_phases

    if not set(args.phases) <= set(PHASES):
        raise HeadAwareError(f"--phases must be of {PHASES}, got {args.phases}")
    if args.samples < 1 or args.texts < 0:
        raise HeadAwareError(f"--samples must be at least 1, got {args.samples}")
    reports = []
    for model in args.models:
        folder, config, profile = policy_and_profile(args, model, KVPolicyConfig("headaware"))
        output = args.output / profile.model.name
        try:
            report = run_phases(
                folder,
                profile,
                output,
                wanted=args.phases,
                config=config,
                samples=args.samples,
                texts=args.texts,
                split=args.split,
                seed=args.seed,
                journal=journal_of(args, profile),
            )
        except OSError as error:
            raise HeadAwareError(f"cannot write results to {output}: {error}") from error
        reports.append(report)
        if not args.json:
            print(markdown(report))
            print(f"Written to {output}.")
    if args.json:
        print(json.dumps({"models": reports}))
    return 0
