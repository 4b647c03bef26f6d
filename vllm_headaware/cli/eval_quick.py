"""vllm-headaware eval quick: one table in minutes."""

from __future__ import annotations

import argparse
import json
from typing import Any

DESCRIPTION = """\
Compare a full 16-bit KV cache, headaware, StreamingLLM and H2O on generated long-context tasks and
on held-out text. The two baselines get at least as many bytes as headaware holds."""

EPILOG = """\
examples:
  vllm-headaware eval quick ./model
  vllm-headaware eval quick ./model --json | tail -1 | jq .relative
  vllm-headaware eval quick ./model --kv-retrieval-share 0.1 --tasks single_needle=2000 --samples 20
  vllm-headaware eval quick ./model --split calibration     # to choose options
"""


def add_parser(subparsers: Any) -> None:
    """Define `eval quick`."""
    from vllm_headaware.cli.eval_options import DEMO_MODEL, add_run_options
    from vllm_headaware.eval.quick import SAMPLE_TOKENS, SAMPLES, TEXTS
    from vllm_headaware.vllm_compat.front_end.flags import add_flags

    parser = subparsers.add_parser(
        "quick",
        help="one table: tasks and text under four methods, minutes on two cores",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default=DEMO_MODEL, help=f"model folder ({DEMO_MODEL})")
    parser.add_argument(
        "--tasks",
        type=parse_tasks,
        default=None,
        metavar="TASK=TOKENS,...",
        help="tasks and prompt lengths; without =TOKENS, 1500",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=SAMPLES,
        metavar="N",
        help=f"prompts per task ({SAMPLES}); more below {SAMPLE_TOKENS} tokens",
    )
    parser.add_argument(
        "--texts", type=int, default=TEXTS, metavar="N", help=f"passages for KL ({TEXTS})"
    )
    add_run_options(parser)
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print; see cli/eval.py."""
    from vllm_headaware.cli.eval_options import journal_of, policy_and_profile
    from vllm_headaware.eval.quick import QUICK, TASK_TOKENS, compare

    folder, config, profile = policy_and_profile(args, args.model, QUICK)
    report = compare(
        folder,
        config,
        profile,
        tasks=args.tasks or TASK_TOKENS,
        samples=args.samples,
        texts=args.texts,
        split=args.split,
        seed=args.seed,
        journal=journal_of(args, profile),
    )
    print(json.dumps(report)) if args.json else show(report)
    return 0


def show(report: dict[str, Any]) -> None:
    """Print a report as one table."""
    from rich.console import Console
    from rich.table import Table

    from vllm_headaware.eval.interval import LEVEL

    names = list(report["scores"])
    console = Console(highlight=False)
    table = Table(title=f"{report['model']}: {report['split']} split, equal bytes")
    for column in ("task", "tokens", *names, "relative", "full bytes / held"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, result in report["tasks"].items():
        relative = result["relative"]
        table.add_row(
            task + (" (not counted)" if task in report["unable"] else ""),
            f"{result['tokens']:,}",
            *(f"{result['scores'][name]:.2f}" for name in names),
            "-" if relative is None else f"{relative:.2f}",
            f"{result['bytes_ratio']:.2f}",
        )
    text = report["text"]
    if text:
        for what in ("nll", "kl"):
            table.add_row(
                f"text, {what} in nats",
                f"{text['tokens']:,}",
                *(f"{text[what][name]:.3f}" for name in names),
                "",
                f"{text['bytes_ratio']:.2f}",
            )
    console.print(table)
    if report["relative"] is not None:
        console.print(
            f"headaware keeps {report['relative']:.3f} of the full cache's score at"
            f" 1/{report['bytes_ratio']:.2f} of its bytes."
        )
    if report["relative_interval"] is not None:
        low, high = report["relative_interval"]
        console.print(
            f"Other prompts would put that share between {low:.3f} and {high:.3f} ({LEVEL:.0%})."
        )
    console.print(
        f"{report['seconds']} s. The full cache is {report['full_dtype']}; the baselines hold no"
        " fewer bytes than headaware. While a prompt is read headaware holds"
        f" 1/{report['reading_bytes_ratio']:.2f} of the full cache."
    )
    for name, tasks in report["baselines_ahead"].items():
        if tasks:
            console.print(f"{name} is ahead of headaware in: {', '.join(tasks)}")


def parse_tasks(text: str) -> dict[str, int]:
    """`single_needle=2000,multi_key` -> tokens by task.

    Raises:
        argparse.ArgumentTypeError: an unknown task or a length that is not a number.
    """
    from vllm_headaware.tasks.samples import TASKS

    chosen: dict[str, int] = {}
    for part in text.split(","):
        task, _, tokens = part.partition("=")
        if task not in TASKS:
            raise argparse.ArgumentTypeError(f"{task!r} is not one of {', '.join(TASKS)}")
        if not (tokens or "1500").isdecimal():
            raise argparse.ArgumentTypeError(f"{tokens!r} is not a number of tokens")
        chosen[task] = int(tokens or 1500)
    return chosen
