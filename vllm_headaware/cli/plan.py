"""vllm-headaware plan: what a policy would cost, before a server is started."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_headaware.config import FIELDS, make_config
from vllm_headaware.config.request import RequestLimits
from vllm_headaware.kernels.here import look
from vllm_headaware.plan import Plan
from vllm_headaware.plan.geometry import MODEL_DTYPES, read_geometry
from vllm_headaware.plan.ladder import Ladders
from vllm_headaware.plan.windows import Windows

LENGTHS = (2048, 8192, 32768, 131072)
UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

DESCRIPTION = """\
Show how a model's KV heads would be classed, how many tokens a block of each class holds, what a
request of any length would cost, and how many requests a memory budget serves with and without the
policy. Nothing is started. The last line is a `vllm serve` command to paste."""

EPILOG = """\
examples:
  vllm-headaware plan ./model
  vllm-headaware plan ./model --kv-retrieval-share 0.5 --memory 8GiB --lengths 4096,8192
  vllm-headaware plan ./model --json | jq .lengths
"""


def add_parser(subparsers: Any) -> None:
    """Define `plan`."""
    from vllm_headaware.vllm_compat.front_end.flags import add_flags

    parser = subparsers.add_parser(
        "plan",
        help="heads per class, bytes per request, concurrency before and after",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="model folder or hub id")
    parser.add_argument("--dtype", default="auto", choices=["auto", *MODEL_DTYPES])
    parser.add_argument("--max-model-len", type=int, default=None, metavar="TOKENS")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument(
        "--memory", type=parse_bytes, default=2**30, metavar="SIZE", help="KV memory (1GiB)"
    )
    parser.add_argument(
        "--lengths", type=parse_lengths, default=None, metavar="N,N,...", help="request lengths"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_flags(parser)
    parser.set_defaults(kv_policy="headaware")


def run(args: argparse.Namespace) -> int:
    """Make the plan and print it.

    Raises:
        HeadAwareError: a model, profile or option that cannot be planned.
    """
    from vllm_headaware.profile.model_hash import resolve_model_dir
    from vllm_headaware.profile.planning import plan_model

    flags = {name: getattr(args, f"kv_{name}") for name in FIELDS}
    config = make_config(flags, args.kv_policy_config)
    model_dir = resolve_model_dir(args.model)
    geometry = read_geometry(model_dir, args.dtype, args.max_model_len)
    device = look()
    plan, _ = plan_model(
        config, geometry, model_dir, args.tensor_parallel_size, triton=device.on_gpu
    )
    lengths = args.lengths or [n for n in LENGTHS if n <= geometry.max_model_len]
    lengths = lengths or [geometry.max_model_len]
    ladder = Ladders(plan, RequestLimits(floor=config.floor)).default
    report = make_report(plan, lengths, args.memory, serve_line(args, flags), ladder)
    report["device"] = {
        "name": device.device,
        "memory_bytes": device.memory_bytes,
        "kernels": device.kernels(geometry.head_size, geometry.group_size),
    }
    if args.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


def make_report(
    plan: Plan, lengths: list[int], memory: int, serve: str, ladder: list[Windows]
) -> dict[str, Any]:
    """Everything `plan` shows, as plain values; bytes are whole numbers."""
    rows = []
    for length in lengths:
        held, dense = plan.request_bytes(length), plan.dense_bytes(length)
        rows.append(
            {
                "tokens": length,
                "blocks": plan.blocks(length, windows=plan.kept_windows(length)),
                "request_bytes": held,
                "reading_bytes": plan.reading_bytes(length),
                "dense_bytes": dense,
                "saving": dense / held,
                "waste": plan.request_waste(length),
                "concurrency": memory // held,
                "dense_concurrency": memory // dense,
            }
        )
    return {
        "policy": plan.policy,
        "geometry": vars(plan.geometry),
        "tensor_parallel_size": plan.tensor_parallel_size,
        "budget": {"asked": plan.budget, "achieved": plan.mean_tokens()},
        "block_bytes": plan.block_bytes,
        "prefix_alignment_tokens": plan.alignment,
        "memory_bytes": memory,
        "classes": [
            {
                "name": c.name,
                "heads": c.num_heads,
                "heads_per_layer": [len(plan.heads(y)[i]) for y in range(plan.geometry.num_layers)],
                "sink": c.policy.sink,
                "window": c.policy.window,
                "prefill_window": c.policy.prefill_window,
                "heavy_hitters": c.policy.heavy_hitters,
                "keep": c.policy.keep,
                "dtype": c.policy.dtype,
                "block_tokens": c.block_tokens,
                "bytes_per_token": c.num_heads * plan.token_bytes(i),
                "block_waste": plan.waste(i),
            }
            for i, c in enumerate(plan.classes)
        ],
        "lengths": rows,
        "levels": [
            {
                "windows": {c.name: w for c, w in zip(plan.classes, windows, strict=True)},
                "request_bytes": [plan.request_bytes(length, windows) for length in lengths],
            }
            for windows in ladder
        ],
        "serve": serve,
    }


def serve_line(args: argparse.Namespace, flags: dict[str, Any]) -> str:
    """The `vllm serve` command that runs this plan."""
    words = ["vllm", "serve", args.model]
    if args.dtype != "auto":
        words += ["--dtype", args.dtype]
    if args.max_model_len:
        words += ["--max-model-len", str(args.max_model_len)]
    if args.tensor_parallel_size > 1:
        words += ["--tensor-parallel-size", str(args.tensor_parallel_size)]
    for name, value in {**flags, "policy_config": args.kv_policy_config}.items():
        if value is not None:
            words += [f"--kv-{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def show(report: dict[str, Any]) -> None:
    """Print a report as tables."""
    console = Console()
    classes = Table(title=f"KV policy {report['policy']}: head classes")
    for column in (
        "class",
        "heads",
        "keeps",
        "KV dtype",
        "tokens per block",
        "bytes per token",
        "block waste",
    ):
        classes.add_column(
            column, justify="left" if column in ("class", "keeps", "KV dtype") else "right"
        )
    for c in report["classes"]:
        keeps = "everything" if c["keep"] >= 1 else f"{c['keep']:.0%} of a prompt, and what follows"
        if c["heavy_hitters"] is not None:
            keeps = f"first {c['sink']}, latest and heaviest: {c['heavy_hitters']:,}"
        elif c["window"] is not None:
            keeps = f"first {c['sink']} + last {c['window']:,}"
        classes.add_row(
            c["name"],
            str(c["heads"]),
            keeps,
            c["dtype"],
            str(c["block_tokens"]),
            f"{c['bytes_per_token']:,}",
            f"{c['block_waste']:.1%}",
        )
    console.print(classes)
    lengths = Table(title=f"Requests in {format_bytes(report['memory_bytes'])} of KV memory")
    for column in ("tokens", "blocks", "holds", "full cache", "saving", "waste", "fit", "full fit"):
        lengths.add_column(column, justify="right")
    for row in report["lengths"]:
        lengths.add_row(
            f"{row['tokens']:,}",
            " + ".join(str(n) for n in row["blocks"].values()),
            format_bytes(row["request_bytes"]),
            format_bytes(row["dense_bytes"]),
            f"{row['saving']:.2f}x",
            f"{row['waste']:.1%}",
            str(row["concurrency"]),
            str(row["dense_concurrency"]),
        )
    console.print(lengths)
    if len(report["levels"]) > 1:
        console.print(_levels(report))
    console.print(
        f"One block is {format_bytes(report['block_bytes'])}; prefix-cache hits land on multiples"
        f" of {report['prefix_alignment_tokens']} tokens.",
        highlight=False,
    )
    longest_asked = report["lengths"][-1]
    if (wide := report["classes"][-1]["prefill_window"]) != 0:
        how = (
            "A prompt is read in full where the pool can hold it"
            if wide is None
            else f"While a prompt is read, windows are at least {wide:,} tokens"
        )
        console.print(
            f"{how}: one of {longest_asked['tokens']:,} tokens then holds"
            f" {format_bytes(longest_asked['reading_bytes'])}.",
            highlight=False,
        )
    asked, achieved = report["budget"]["asked"], report["budget"]["achieved"]
    longest = report["geometry"]["max_model_len"]
    console.print(
        (f"Asked for {asked:,} tokens per KV head; " if asked else "")
        + f"a KV head keeps {achieved:,.0f} of {longest:,} tokens on average.",
        highlight=False,
    )
    device, memory = report["device"], report["device"]["memory_bytes"]
    console.print(
        f"This machine: {device['name']}{f', {format_bytes(memory)}' if memory else ''};"
        f" kernels: {device['kernels']}.",
        highlight=False,
    )
    console.print(report["serve"], soft_wrap=True, highlight=False, markup=False)


def _levels(report: dict[str, Any]) -> Table:
    """What new requests get when memory runs low."""
    table = Table(title="Levels: windows of new requests when memory runs low")
    table.add_column("level", justify="right")
    for c in report["classes"]:
        table.add_column(c["name"], justify="right")
    for row in report["lengths"]:
        table.add_column(f"{row['tokens']:,} tokens hold", justify="right")
    for number, level in enumerate(report["levels"]):
        windows = ("everything" if w is None else f"{w:,}" for w in level["windows"].values())
        table.add_row(str(number), *windows, *map(format_bytes, level["request_bytes"]))
    return table


def format_bytes(count: float) -> str:
    """Binary units, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def parse_bytes(text: str) -> int:
    """`8GiB`, `512MiB` or a number of bytes.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Z]*)", text.strip().upper())
    if not match or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 8GiB or 512MiB")
    return int(float(match[1]) * UNITS[match[2]])


def parse_lengths(text: str) -> list[int]:
    """Comma-separated token counts.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of lengths such as 2048,8192")
    return lengths
