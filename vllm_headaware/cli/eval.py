"""vllm-headaware eval: what a model still knows when its cache is cut."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

DEMO_MODEL = ".cache/models/SmolLM2-135M-Instruct"

DESCRIPTION = """\
Compare a full KV cache, headaware, StreamingLLM and H2O on generated long-context tasks and on
held-out text, in plain Hugging Face transformers. The two baselines get at least as many bytes as
headaware holds; bytes are those of the plan that the engine would follow. Prompts are generated
from words that no head profile has been calibrated on."""

EPILOG = """\
examples:
  vllm-headaware eval quick ./model
  vllm-headaware eval quick ./model --json | tail -1 | jq .relative
  vllm-headaware eval quick ./model --kv-retrieval-share 0.1 --tasks single_needle=2000 --samples 20
  vllm-headaware eval quick ./model --split calibration     # to choose options
"""


def add_parser(subparsers: Any) -> None:
    """Define `eval`."""
    from vllm_headaware.vllm_compat.flags import add_flags

    parser = subparsers.add_parser(
        "eval",
        help="what the model still knows: headaware and baselines at equal bytes",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["quick"], help="quick: one table, minutes on two cores")
    parser.add_argument("model", nargs="?", default=DEMO_MODEL, help=f"model folder ({DEMO_MODEL})")
    parser.add_argument(
        "--tasks",
        type=parse_tasks,
        default=None,
        metavar="TASK=TOKENS,...",
        help="tasks and prompt lengths; without =TOKENS, 1500",
    )
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="prompts per task (5)")
    parser.add_argument(
        "--texts", type=int, default=2, metavar="N", help="held-out passages for KL (2)"
    )
    parser.add_argument("--split", default="evaluation", choices=["calibration", "evaluation"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print.

    Raises:
        HeadAwareError: a model, profile or option that cannot be evaluated.
    """
    from vllm_headaware.config import FIELDS, make_config
    from vllm_headaware.errors import HeadAwareError
    from vllm_headaware.eval.quick import QUICK, TASK_TOKENS, compare
    from vllm_headaware.profile.locate import find_profile
    from vllm_headaware.profile.model_hash import resolve_model_dir

    flags = {name: getattr(args, f"kv_{name}") for name in FIELDS}
    if flags["policy"] not in (None, "headaware"):
        raise HeadAwareError("eval compares headaware with the others; leave --kv-policy out")
    given = {name: value for name, value in flags.items() if value is not None}
    config = make_config({**dataclasses.asdict(QUICK), **given}, args.kv_policy_config)
    model_dir = resolve_model_dir(args.model)
    profile = find_profile(model_dir, config.head_profile)
    report = compare(
        Path(model_dir),
        config,
        profile,
        tasks=args.tasks or TASK_TOKENS,
        samples=args.samples,
        texts=args.texts,
        split=args.split,
        seed=args.seed,
    )
    print(json.dumps(report)) if args.json else show(report)
    return 0


def show(report: dict[str, Any]) -> None:
    """Print a report as one table."""
    from rich.console import Console
    from rich.table import Table

    names = list(report["scores"])
    console = Console()
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
    console.print(f"{report['seconds']} s; the baselines hold no fewer bytes than headaware.")


def parse_tasks(text: str) -> dict[str, int]:
    """`single_needle=2000,multi_key` -> tokens by task.

    Raises:
        argparse.ArgumentTypeError: an unknown task or a length that is not a number.
    """
    from vllm_headaware.eval.tasks import TASKS

    chosen: dict[str, int] = {}
    for part in text.split(","):
        task, _, tokens = part.partition("=")
        if task not in TASKS:
            raise argparse.ArgumentTypeError(f"{task!r} is not one of {', '.join(TASKS)}")
        if not (tokens or "1500").isdecimal():
            raise argparse.ArgumentTypeError(f"{tokens!r} is not a number of tokens")
        chosen[task] = int(tokens or 1500)
    return chosen
