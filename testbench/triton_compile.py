"""Compile the Triton kernels for NVIDIA GPUs where there is none, and read what came out.

The launches of a layer are recorded with the arguments that serving gives them; then each is
compiled for a compute capability, and registers, spills, widths of loads and matrix instructions
are counted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
LAUNCH_OPTIONS = ("num_warps", "num_stages", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """A kernel and the arguments of one launch, by name."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


def record(step: Any) -> list[Launch]:
    """The launches that step() makes; none of them runs."""
    from triton.runtime.jit import JITFunction

    launches = []
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in LAUNCH_OPTIONS if name in kwargs}
        launches.append(
            Launch(self, {**dict(zip(self.arg_names, args, strict=False)), **kwargs}, options)
        )

    JITFunction.run = run
    try:
        step()
    finally:
        JITFunction.run = original
    return launches


@dataclass(frozen=True)
class Judged:
    """What the compiler made of a launch.

    Attributes:
        registers: of a thread.
        spills: bytes of a thread's stack.
        shared: bytes of shared memory.
        copies: asynchronous copies to shared memory of 16 bytes a thread, which run ahead of use.
        wide_loads: loads from global memory of 16 bytes a thread, asynchronous copies included.
        loads: all loads from global memory, asynchronous copies included.
        products: instructions of matrix units.
    """

    registers: int
    spills: int
    shared: int
    copies: int
    wide_loads: int
    loads: int
    products: int


def judge(launch: Launch, capability: int) -> Judged:
    """Compile a launch for a compute capability, 80 or 90 for example."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    constants = {p.name for p in kernel.params if p.is_constexpr}
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = launch.arguments[name]
        signature[name] = _type(value)
        if kernel.params[index].do_not_specialize:
            continue
        for path, element in _elements(value, (index,)):
            if _divisible(element):
                attributes[path] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {n: launch.arguments[n] for n in constants}, attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    ptx = compiled.asm["ptx"]
    usage = _resources(compiled.asm["cubin"])
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global.*?, 0x([0-9a-f]+)", ptx)
    plain = re.findall(r"ld\.global(?:\.[a-z0-9:_]+)*?(?:\.v(\d))?\.b(\d+)", ptx)
    widths = [int(copy, 16) for copy in copies]
    widths += [int(vector or 1) * int(bits) // 8 for vector, bits in plain]
    return Judged(
        registers=usage["REG"],
        spills=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        copies=sum(int(copy, 16) >= 16 for copy in copies),
        wide_loads=sum(width >= 16 for width in widths),
        loads=len(widths),
        products=len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)", ptx)),
    )


def _type(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_type, value))
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _elements(value: Any, path: tuple[int, ...]) -> list[tuple[tuple[int, ...], Any]]:
    if isinstance(value, tuple):
        return [x for i, item in enumerate(value) for x in _elements(item, (*path, i))]
    return [(path, value)]


def _divisible(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def _resources(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
