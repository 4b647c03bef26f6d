"""The compiled kernels, loaded with ctypes: the structs of abi.h, and one function per instruction
set.

The library links neither Python nor torch, so one build serves all their versions. It shares
torch's OpenMP threads, because the loader gives it the OpenMP runtime that torch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from vllm_headaware.kernels.formats import FORMATS

ABI_VERSION = 6
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""Best first."""
FORMAT_CODES = {name: code for code, name in enumerate(FORMATS)}
IO_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_int32_p = ctypes.POINTER(ctypes.c_int32)


class HaClass(ctypes.Structure):
    """One head class of one layer; see abi.h."""

    _fields_ = (
        ("cache", ctypes.c_void_p),
        ("block_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("kv_heads", _int32_p),
        ("num_kv_heads", ctypes.c_int32),
        ("block_tokens", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("sink", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("exact", ctypes.c_int32),
    )


class HaLayer(ctypes.Structure):
    """One attention layer; see abi.h."""

    _fields_ = (
        ("classes", ctypes.POINTER(HaClass)),
        ("num_classes", ctypes.c_int32),
        ("num_query_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("io_dtype", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("soft_cap", ctypes.c_float),
        ("sink_logits", ctypes.c_void_p),
    )


class HaStep(ctypes.Structure):
    """What a class needs to know of a step; see abi.h."""

    _fields_ = (
        ("query_start", ctypes.c_void_p),
        ("seq_lens", ctypes.c_void_p),
        ("block_table", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("num_requests", ctypes.c_int32),
        ("windows", ctypes.c_void_p),
        ("reading_windows", ctypes.c_void_p),
        ("prompt_lens", ctypes.c_void_p),
        ("mass", ctypes.c_void_p),
    )


class HaRows(ctypes.Structure):
    """Query, key, value or output rows; see abi.h."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64))


class HaCall(ctypes.Structure):
    """Arguments of one call; see abi.h."""

    _fields_ = (
        ("layer", ctypes.POINTER(HaLayer)),
        ("steps", ctypes.POINTER(ctypes.POINTER(HaStep))),
        ("query", HaRows),
        ("key", HaRows),
        ("value", HaRows),
        ("output", HaRows),
    )


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where the package was installed without a compiler.

    Raises:
        RuntimeError: a library of another version lies in its place.
    """
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.exists():
            library = ctypes.CDLL(str(path))
            library.ha_find.restype = ctypes.c_void_p
            library.ha_find.argtypes = [ctypes.c_char_p]
            if library.ha_abi_version() != ABI_VERSION:
                raise RuntimeError(
                    f"{path} was built from other sources; install the package again"
                )
            return library
    return None


@functools.cache
def find_kernel(instruction_set: str | None = None) -> Callable[[Any], None] | None:
    """The attention kernel for an instruction set; None where it is not there or cannot run.

    Args:
        instruction_set: one of INSTRUCTION_SETS, or None for the best this machine has.
    """
    library = load_library()
    if library is None:
        return None
    names = INSTRUCTION_SETS if instruction_set is None else (instruction_set,)
    for name in names:
        address = library.ha_find(name.encode())
        if address:
            return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
    return None
