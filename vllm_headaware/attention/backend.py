"""The seam for kernels: a backend is what vLLM allocates by, and a function that attends.

To add one (a GPU, say): write a module like native.py and choose it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm.v1.attention.backend import AttentionBackend

from vllm_headaware.attention import native, stock
from vllm_headaware.geometry import ModelGeometry
from vllm_headaware.kernels.cpu.support import why_not_native


@dataclass(frozen=True)
class Kernels:
    """`attend(split, query, key, value, output)` is called once per layer and step."""

    backend: type[AttentionBackend]
    attend: Callable[..., None]


NATIVE = Kernels(native.NativeBackend, native.attend)
STOCK = Kernels(stock.StockBackend, stock.attend)


def choose_kernels(geometry: ModelGeometry) -> Kernels:
    """The native kernels where they can serve the model, else vLLM's own op."""
    return STOCK if why_not_native(geometry.head_size, geometry.group_size) else NATIVE
