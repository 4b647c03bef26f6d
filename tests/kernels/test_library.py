"""The compiled library as the loader sees it, on the oldest machine of its architecture."""

import re
import shutil
import subprocess

import pytest

from vllm_headaware.kernels.cpu.library import find_kernel, load_library

WIDE = re.compile(r"[yz]mm\d|\tv[a-z0-9]+ +")
"""Registers and instructions that came with AVX and after."""


def functions_of(library: str) -> dict[str, str]:
    """Disassembly by symbol."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    parts = re.split(r"^[0-9a-f]+ <([^>]+)>:$", listing, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs binutils")
def test_what_every_machine_runs_is_built_for_every_machine() -> None:
    """Code that runs when the library is loaded, and templates that the linker shares between the
    builds for several instruction sets, must not be the AVX-512 build's."""
    library = load_library()
    if library is None or not find_kernel("avx2"):
        pytest.skip("no library with several instruction sets")
    functions = functions_of(library._name)
    table = subprocess.run(
        ["nm", "--defined-only", library._name], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split() for line in table.splitlines()]
    weak = {name for _, kind, name in symbols if kind in "WVu" and name in functions}
    start_up = {name for name in functions if "_GLOBAL__sub_I_" in name}
    assert WIDE.search(functions["ha_attend_avx2"]), "the listing is not understood"
    assert [name for name in weak | start_up if WIDE.search(functions[name])] == []
