"""How sizes of the kernels' tiles compare on this GPU, as JSON lines; what Shape has comes first.

    python -m checks.gpu.tune decode|prefill     on the GPU

Every variant is compiled in a process of its own first, several at once; then they are timed one
after the other. "kernels" is the time of each kernel of a layer with what Shape has, in us.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from checks.gpu.op import KINDS

PROCESSES = max((os.cpu_count() or 1) - 2, 1)
DECODE: list[dict[str, int]] = [
    {"decode_warps": 1, "decode_registers": 144},
    {"decode_tokens": 32, "decode_registers": 128},
    {"decode_stages": 3},
    {"programs": 8},
    {"piece": 256},
    {"piece": 1024},
]
"""What differs from Shape; programs for each multiprocessor; piece of work.PIECE."""
PREFILL = [
    {"rows": rows, "tile_tokens": tokens, "warps": warps}
    for rows, tokens, warps in ((128, 32, 8), (64, 64, 4))
]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["decode", "prefill"])
    parser.add_argument("--compile", type=json.loads, help="only this variant, as JSON")
    parser.add_argument("--compiled", action="store_true", help="time only")
    parser.add_argument("--until-compiled", action="store_true", help="compile only")
    args = parser.parse_args()
    variants: list[dict[str, int]] = [{}, *(DECODE if args.what == "decode" else PREFILL)]
    if args.compile is not None:
        _launch(args.what, args.compile)
        return
    if not args.compiled:
        with ThreadPoolExecutor(PROCESSES) as pool:
            command = [sys.executable, "-m", "checks.gpu.tune", args.what, "--compile"]
            list(
                pool.map(lambda v: subprocess.run([*command, json.dumps(v)], check=False), variants)
            )
    if not args.until_compiled:
        _time(args.what, variants)


def _sides(what: str, variant: dict[str, int], kinds: tuple[str, str]) -> Any:
    """Each load's name and what is timed there, with a variant's sizes."""
    import torch

    from checks.gpu.shapes import REAL
    from checks.gpu.sides import Inputs, Ours
    from vllm_headaware.kernels.triton.shape import Shape
    from vllm_headaware.kernels.triton.work import PIECE

    g = REAL.geometry
    for name in variant.keys() & vars(Shape).keys():
        setattr(Shape, name, property(partial(_value, variant[name])))
    loads = REAL.decode if what == "decode" else REAL.prefill
    for load in loads:
        queries = 1 if what == "decode" else min(REAL.chunk, load.tokens)
        inputs = Inputs(g, load, queries, torch.bfloat16)
        for heads in (g.retrieval_heads,) if what == "decode" else (0, g.kv_heads):
            side = Ours(g, inputs, kinds, heads, variant.get("piece", PIECE))
            if "programs" in variant:
                each = torch.cuda.get_device_properties(0).multi_processor_count
                side.room.programs = variant["programs"] * each
            yield f"{load}, {heads} full", side


def _value(value: int, shape: Any) -> int:
    """What a property of Shape gives instead of its own."""
    return value


def _launch(what: str, variant: dict[str, int]) -> None:
    import torch

    torch.set_default_device("cuda")
    for _, side in _sides(what, variant, KINDS):
        side()
        torch.cuda.synchronize()
        return


def _time(what: str, variants: list[dict[str, int]]) -> None:
    import torch

    from checks.gpu.timing import seconds
    from vllm_headaware.kernels.triton.shape import Shape

    torch.set_default_device("cuda")
    own = dict(vars(Shape))
    for variant in variants:
        line: dict[str, Any] = {"part": f"tune {what}", **variant}
        try:
            for name, side in _sides(what, variant, KINDS):
                line[name] = round(seconds(side, 10) / len(side.layers) * 1e6, 1)
                if not variant:
                    line[f"{name}, kernels"] = _kernels(side)
        except Exception as error:  # sizes that a GPU has no room for
            line["error"] = f"{type(error).__name__}: {error}"[-200:]
        print(json.dumps(line), flush=True)
        for name in variant.keys() & own.keys():
            setattr(Shape, name, own[name])
        torch.cuda.empty_cache()


def _kernels(side: Any) -> dict[str, float]:
    """Time of each kernel of a layer, us."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(5):
            side()
        torch.cuda.synchronize()
    return {
        event.key: round(event.device_time_total / event.count, 1) for event in found.key_averages()
    }


if __name__ == "__main__":
    main()
