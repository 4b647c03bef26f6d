"""Attention of one layer on every side, decode and prefill, as JSON lines.

Run as `python -m checks.gpu.op decode|prefill [--dry-run]`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["decode", "prefill"])
    parser.add_argument("--compile", action="store_true", help="launch everything, time nothing")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, in the interpreter")
    args = parser.parse_args()
    if args.dry_run:
        from testbench.triton_interpreter import enable

        enable(runner=True)
    import torch

    from checks.gpu.shapes import DRY, REAL

    torch.manual_seed(0)
    torch.set_default_device("cpu" if args.dry_run else "cuda")
    measure = {"decode": decode, "prefill": prefill}[args.what]
    scale = DRY if args.dry_run else REAL
    measure(dataclasses.replace(scale, repeats=0) if args.compile else scale)


KINDS = ("k8v4", "k8v4")
"""What the default stores."""


def copy_bandwidth(repeats: int) -> float:
    """Bytes read and written per second by a kernel that only copies."""
    import torch

    from checks.gpu.shapes import BANDWIDTH_BYTES
    from checks.gpu.timing import seconds

    size = BANDWIDTH_BYTES if torch.cuda.is_available() else 2**20
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: torch.neg(source, out=target), repeats)


def decode(scale: Any) -> None:
    """One new token for every request."""
    import torch

    from checks.gpu.sides import Inputs, Ours, PerTokenHead, Stock

    bandwidth = copy_bandwidth(scale.repeats) if scale.repeats else None
    g, some = scale.geometry, scale.geometry.retrieval_heads
    for load in scale.decode:
        inputs = Inputs(g, load, 1, torch.bfloat16)
        sides: dict[str, Callable[[], Any]] = {
            "stock": partial(Stock, g, inputs),
            "ours k8v4": partial(Ours, g, inputs, ("k8v4", "k8v4"), some),
            "ours int8": partial(Ours, g, inputs, ("int8", "int8"), some),
            "ours int4": partial(Ours, g, inputs, ("int4", "int4"), some),
            "ours bfloat16": partial(Ours, g, inputs, ("bfloat16", "bfloat16"), some),
            "vllm int8": partial(PerTokenHead, g, inputs, 8),
            "vllm int4": partial(PerTokenHead, g, inputs, 4),
        }
        _compare("decode", load, sides, scale.repeats, bandwidth)


def prefill(scale: Any) -> None:
    """The last chunk of a prompt: all heads windowed, all with everything, and the default's."""
    import torch

    from checks.gpu.sides import Inputs, Ours, Stock

    g = scale.geometry
    for load in scale.prefill:
        inputs = Inputs(g, load, min(scale.chunk, load.tokens), torch.bfloat16)
        sides: dict[str, Callable[[], Any]] = {
            "stock": partial(Stock, g, inputs),
            "ours windowed": partial(Ours, g, inputs, KINDS, 0),
            "ours full": partial(Ours, g, inputs, KINDS, g.kv_heads),
            "ours default": partial(Ours, g, inputs, KINDS, g.retrieval_heads),
        }
        _compare("prefill", load, sides, -(-scale.repeats // 4), None)


def _compare(
    what: str, load: Any, sides: dict[str, Callable[[], Any]], repeats: int, bandwidth: float | None
) -> None:
    import torch

    from checks.gpu.timing import seconds

    base = None
    if not repeats:
        for make in sides.values():
            with contextlib.suppress(Exception):  # said where it is timed
                make()()
            torch.cuda.empty_cache()
        return
    for name, make in sides.items():
        line: dict[str, Any] = {"part": what, "load": str(load), "side": name}
        try:
            side = make()
            each = seconds(side, repeats) / len(side.layers)
            line |= {"us": each * 1e6, "bytes_read": side.bytes_read}
            base = each if name == "stock" else base
            if base:
                line["of_stock"] = base / each
            if bandwidth:
                line["of_bandwidth"] = side.bytes_read / each / bandwidth
            if hasattr(side, "list_work"):
                line["list_us"] = seconds(side.list_work, repeats) * 1e6
        except Exception as error:  # a peer that a card cannot run must not end the others
            if name.startswith("ours"):
                raise
            line["error"] = f"{type(error).__name__}: {error}"[:300]
        side = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(json.dumps({k: _rounded(v) for k, v in line.items()}), flush=True)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
