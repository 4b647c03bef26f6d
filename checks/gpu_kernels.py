"""Every Triton kernel as serving launches it, compiled for sm_80 and sm_90 without a GPU.

    python -m checks.gpu_kernels            print the table
    python -m checks.gpu_kernels --write    keep it in docs/gpu-kernels.json, which a test compares

Registers and spills are those of a thread. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from testbench.progress import say
from testbench.triton_compile import judge, record

TABLE = Path(__file__).resolve().parents[1] / "docs" / "gpu-kernels.json"
CAPABILITIES = (80, 90)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's attention and how its classes are stored; the last is the one with a window."""

    name: str
    size: int
    query_heads: int
    kv_heads: int
    kinds: tuple[str, ...]
    blocks: tuple[int, ...] = (96, 224, 32)
    io: torch.dtype = torch.bfloat16


CASES = (
    Case("8B, int8", 128, 32, 8, ("int8", "int8", "int8")),
    Case("8B, int4", 128, 32, 8, ("int4", "int4", "int4")),
    Case("8B, k8v4", 128, 32, 8, ("k8v4", "k8v4", "k8v4")),
    Case("8B, bfloat16", 128, 32, 8, ("bfloat16", "bfloat16", "bfloat16")),
    Case("8B, one class", 128, 32, 8, ("int8",), (64,)),
    Case("70B a rank of 8, int8", 128, 8, 1, ("int8", "int8", "int8")),
    Case("head size 64, int8", 64, 9, 3, ("int8", "int8", "int8")),
    Case("head size 64, three formats", 64, 9, 3, ("k8v4", "bfloat16", "int8")),
    Case("head size 256, int8", 256, 8, 4, ("int8", "int8", "int8")),
    Case("head size 96, int8, float16", 96, 32, 32, ("int8", "int8", "int8"), io=torch.float16),
)


def launches(case: Case) -> Any:
    """What a step with prompts and answers launches."""
    from vllm_headaware.kernels.formats import FORMATS
    from vllm_headaware.kernels.triton.attention import ClassCache, LayerAttention
    from vllm_headaware.kernels.triton.workspace import ClassStep, StepWork, Workspace

    heads = list(range(case.kv_heads))
    shares = [heads[i :: len(case.kinds)] for i in range(len(case.kinds))]
    classes = []
    for kind, block, own in zip(case.kinds, case.blocks, shares, strict=True):
        kv_format = FORMATS[kind]
        content = kv_format.token_bytes(case.size) // (1 if kv_format.quantised else 2)
        dtype = torch.int8 if kv_format.quantised else getattr(torch, kind)
        cache = torch.zeros(2, len(own), block, content, dtype=dtype) if own else None
        classes.append(ClassCache(cache, own, kind, block, -(-64 // block) * block))
    layer = LayerAttention(
        num_query_heads=case.query_heads,
        num_kv_heads=case.kv_heads,
        head_size=case.size,
        scale=case.size**-0.5,
        io_dtype=case.io,
        classes=classes,
    )
    room = Workspace(
        max_requests=16,
        max_tokens=64,
        max_length=8192,
        num_query_heads=case.query_heads,
        num_kv_heads=case.kv_heads,
        head_size=case.size,
        num_classes=len(classes),
        device=torch.device("cpu"),
    )
    table = torch.zeros(16, 32, dtype=torch.int32)
    lens = torch.zeros(16, dtype=torch.int32)
    starts = torch.zeros(17, dtype=torch.int32)
    query = torch.zeros(64, case.query_heads, case.size, dtype=case.io)
    key = torch.zeros(64, case.kv_heads, case.size, dtype=case.io)

    def step() -> None:
        steps = [ClassStep(starts, lens, table) for _ in classes]
        work = StepWork(room, layer.shape, layer.layout, steps, max_queries=2)
        layer(query, key, key, query, work)

    return record(step)


def table(cases: tuple[Case, ...] = CASES) -> dict[str, dict[str, int]]:
    """What was compiled, by "case, kernel, sm_NN"."""
    rows = {}
    for case in cases:
        for launch in launches(case):
            for capability in CAPABILITIES:
                judged = judge(launch, capability)
                rows[f"{case.name}, {launch.name}, sm_{capability}"] = dataclasses.asdict(judged)
                say(f"{case.name:28} {launch.name:10} sm_{capability} {judged}")
    return rows


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the table")
    parser.add_argument("--case", action="append", help="only this one; may be given again")
    args = parser.parse_args()
    rows = table(tuple(case for case in CASES if not args.case or case.name in args.case))
    if args.write:
        TABLE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    spills = sum(row["spills"] for row in rows.values())
    result = {"ok": spills == 0, "specialisations": len(rows), "spills": spills}
    print(json.dumps(result if not args.case else {**result, "rows": rows}))
    return 0 if spills == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
