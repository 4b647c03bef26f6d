"""vllm-headaware eval: what a model still knows when its cache is cut."""

from __future__ import annotations

import argparse
from typing import Any

from vllm_headaware.cli import eval_gpe, eval_long, eval_phases, eval_quick

DESCRIPTION = """\
Measure what a model still knows on generated long-context tasks and on held-out text: `long` in the
real engine, the others in plain Hugging Face transformers, where bytes are those of the plan that
the engine would follow. Prompts are made of words that no head profile has been calibrated on.
Finished runs are kept in the user's cache and are not run again."""

EPILOG = """\
examples:
  vllm-headaware eval quick ./model
  vllm-headaware eval long ./model --quick
  vllm-headaware eval phases ./model -o results
  vllm-headaware eval gpe ./model
"""
COMMANDS = {"quick": eval_quick, "long": eval_long, "phases": eval_phases, "gpe": eval_gpe}


def add_parser(subparsers: Any) -> None:
    """Define `eval` and what can be evaluated."""
    parser = subparsers.add_parser(
        "eval",
        help="what the model still knows: headaware and baselines at equal bytes",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for module in COMMANDS.values():
        module.add_parser(kinds)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print.

    Raises:
        HeadAwareError: a model, profile or option that cannot be evaluated.
    """
    return COMMANDS[args.what].run(args)
