"""vllm-headaware top: the live page in a terminal."""

from __future__ import annotations

import argparse
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vllm_headaware.cli.inspect import SHADES
from vllm_headaware.errors import HeadAwareError

DESCRIPTION = """\
Show what each KV head of a running server holds, and what that saves, until Ctrl-C. In the map a
digit is tenths of the largest head, and the letter row above it the class. Nothing is changed on
the server."""

EPILOG = """\
examples:
  vllm-headaware top
  vllm-headaware top http://gpu-7:8000 --interval 5
  vllm-headaware top --once --json | jq .used_bytes
"""
TIMEOUT_SECONDS = 10
MOST_REQUESTS = 12


def add_parser(subparsers: Any) -> None:
    """Define `top`."""
    parser = subparsers.add_parser(
        "top",
        help="what each KV head of a running server holds, live",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="the server")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--once", action="store_true", help="show one moment and end")
    parser.add_argument("--json", action="store_true", help="print heads.json, one line a moment")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("VLLM_API_KEY"),
        metavar="KEY",
        help="the server's API key (default: VLLM_API_KEY)",
    )


def run(args: argparse.Namespace) -> int:
    """Show until interrupted.

    Raises:
        HeadAwareError: no such server, no policy there, a key that is missing or wrong.
    """
    if args.interval <= 0:
        raise HeadAwareError(f"--interval must be above 0 seconds, not {args.interval:g}")
    if args.json:
        while True:
            print(json.dumps(fetch(args, "heads.json")), flush=True)
            if args.once:
                return 0
            time.sleep(args.interval)
    plan, console = fetch(args, "plan.json"), Console(highlight=False)
    if args.once:
        console.print(view(plan, fetch(args, "heads.json"), console.width))
        return 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            now = fetch(args, "heads.json")
            live.update(view(plan, now, console.width), refresh=True)
            time.sleep(args.interval)


def fetch(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """One JSON document of the server's live page.

    Raises:
        HeadAwareError: see run().
    """
    url = args.url if "://" in args.url else "http://" + args.url
    request = urllib.request.Request(f"{url.rstrip('/')}/headaware/{name}")
    if args.api_key:
        request.add_header("Authorization", f"Bearer {args.api_key}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise HeadAwareError(f"{url} asks for its API key; give it with --api-key") from error
        raise HeadAwareError(
            f"{url} has nothing to show ({error.code}); is it vLLM with --kv-policy headaware?"
        ) from error
    except ValueError as error:
        raise HeadAwareError(f"{url} is not a server's address: {error}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise HeadAwareError(f"no server answers at {url}: {reason}") from error


def size_text(count: float) -> str:
    """Bytes in binary units."""
    power = min(max(int(count).bit_length() - 1, 0) // 10, 4)
    return f"{count:.0f} B" if power == 0 else f"{count / 1024**power:,.1f} {'KMGT'[power - 1]}iB"


def saving_text(held: float, dense: float) -> str:
    """Saving against dense in percent, or a dash where nothing is held."""
    return f"{1 - held / dense:.0%}" if dense else "-"


def view(plan: dict[str, Any], now: dict[str, Any], width: int) -> Group:
    """Everything, as a rich renderable `width` columns wide."""
    used, dense = now["used_bytes"], now["dense_equivalent_bytes"]
    share = used / now["capacity_bytes"] if now["capacity_bytes"] else 0.0
    head = Text(f"{plan['model_name']}  policy {plan['policy']}  ", style="bold")
    head.append(
        f"held {size_text(used)} ({share:.1%} of the pool), dense {size_text(dense)},"
        f" saving {saving_text(used, dense)}; {now['running']} requests, {now['tokens']:,} tokens",
        style="not bold",
    )
    if now["level"]:
        head.append(f"; memory is low: new requests get level {now['level']}", style="yellow")
    return Group(head, _classes(plan, now), *_map(plan, now, width), _requests(now))


def _classes(plan: dict[str, Any], now: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("class", "heads", "keeps", "blocks", "tokens", "bytes"):
        table.add_column(title, justify="left" if title == "class" else "right")
    for planned, held in zip(plan["classes"], now["classes"], strict=True):
        keeps = f"{planned['sink']:,} + {planned['window'] or 0:,}"
        if planned["window"] is None:
            heavy = planned["heavy_hitters"]
            keeps = "everything" if heavy is None else f"heaviest {heavy:,}"
        table.add_row(
            planned["name"],
            str(planned["heads"]),
            keeps,
            f"{held['blocks']:,}",
            f"{held['tokens']:,}",
            size_text(held["bytes"]),
        )
    return table


def _map(plan: dict[str, Any], now: dict[str, Any], width: int) -> list[Text]:
    """Two lines per KV head: the classes' letters, and tenths of the largest head."""
    letters = [c["name"][0].upper() for c in plan["classes"]]
    largest = max((b for row in now["head_bytes"] for b in row), default=0) or 1
    layers, heads = len(plan["assignment"]), len(plan["assignment"][0])
    per_line = max(width - 9, 10)
    lines = []
    for start in range(0, layers, per_line):
        shown = range(start, min(start + per_line, layers))
        lines.append(Text(f"layers {shown.start} to {shown.stop - 1}", style="dim"))
        for head in range(heads):
            lines.append(
                Text(" " * 8 + "".join(letters[plan["assignment"][y][head]] for y in shown), "dim")
            )
            line = Text(f"head {head:<2} ")
            for y in shown:
                shade = min(int(now["head_bytes"][y][head] / largest * 10), 9)
                ink = "black" if shade > 5 else "white"
                line.append(str(shade), style=f"{ink} on color({SHADES[shade]})")
            lines.append(line)
    return lines


def _requests(now: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("request", "tokens", "holds", "dense", "saving"):
        table.add_column(title, justify="left" if title == "request" else "right")
    for request in now["requests"][:MOST_REQUESTS]:
        held, dense = request["bytes"], request["dense_equivalent_bytes"]
        table.add_row(
            request["request_id"],
            f"{request['tokens']:,}",
            size_text(held),
            size_text(dense),
            saving_text(held, dense),
        )
    return table
