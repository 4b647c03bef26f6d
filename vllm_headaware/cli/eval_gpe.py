"""vllm-headaware eval gpe: streaming input under group position encoding."""

from __future__ import annotations

import argparse
import json
from typing import Any

DESCRIPTION = """\
Repeat passages while they still arrive: source and target count positions apart (group position
encoding), and writing starts after k source tokens (wait-k). The first row has ordinary positions
and reads everything first. AL and LAAL are lags in source tokens."""

EPILOG = """\
examples:
  vllm-headaware eval gpe ./model
  vllm-headaware eval gpe ./model --wait-k 1,8,32 --phi 64 --json
"""


def add_parser(subparsers: Any) -> None:
    """Define `eval gpe`."""
    from vllm_headaware.cli.eval_options import DEMO_MODEL
    from vllm_headaware.cli.plan import parse_lengths

    parser = subparsers.add_parser(
        "gpe",
        help="streaming input: group positions, wait-k, lags",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default=DEMO_MODEL, help=f"model folder ({DEMO_MODEL})")
    parser.add_argument("--wait-k", type=parse_lengths, default=[4, 8, 16], metavar="K,K,...")
    parser.add_argument("--phi", type=int, default=0, help="position of the first target token (0)")
    parser.add_argument("--passages", type=int, default=4, metavar="N")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="passage length (64)")
    parser.add_argument("--split", default="evaluation", choices=["calibration", "evaluation"])
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print; see cli/eval.py."""
    from pathlib import Path

    from vllm_headaware.eval.gpe_run import evaluate
    from vllm_headaware.profile.model_hash import resolve_model_dir

    report = evaluate(
        Path(resolve_model_dir(args.model)),
        waits=args.wait_k,
        phi=args.phi,
        passages=args.passages,
        tokens=args.tokens,
        split=args.split,
    )
    print(json.dumps(report)) if args.json else show(report)
    return 0


def show(report: dict[str, Any]) -> None:
    """Print a report as one table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{report['model']}: repeating {report['tokens']} tokens, phi {report['phi']}"
    )
    for column in ("positions", "wait-k", "NLL", "right", "written", "AL", "LAAL"):
        table.add_column(column, justify="left" if column == "positions" else "right")
    for row in report["rows"]:
        table.add_row(
            row["positions"],
            "all" if row["wait_k"] is None else str(row["wait_k"]),
            f"{row['nll']:.3f}",
            f"{row['right']:.0%}",
            f"{row['written']:.0%}",
            f"{row['al']:.1f}",
            f"{row['laal']:.1f}",
        )
    Console(highlight=False).print(table)
