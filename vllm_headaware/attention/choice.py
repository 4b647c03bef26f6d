"""Which kernels serve a model here."""

from __future__ import annotations

from vllm_headaware.attention import cpu, stock
from vllm_headaware.attention.kernels import Kernels
from vllm_headaware.kernels.cpu import rows as cpu_rows
from vllm_headaware.kernels.cpu.support import why_not_native
from vllm_headaware.plan.geometry import ModelGeometry

NATIVE = Kernels(cpu.NativeBackend, cpu.attend, rows=(cpu_rows.take, cpu_rows.put))
STOCK = Kernels(stock.StockBackend, stock.attend, terms=False)


def choose_kernels(geometry: ModelGeometry, triton: bool) -> Kernels:
    """The Triton kernels under model runner V2, which is what GPUs run; else the native CPU kernels
    where they can serve the model, else vLLM's own op."""
    if triton:
        from vllm_headaware.attention import cuda
        from vllm_headaware.kernels.triton import rows

        return Kernels(cuda.TritonBackend, cuda.attend, cuda.reserve, rows=(rows.take, rows.put))
    return STOCK if why_not_native(geometry.head_size, geometry.group_size) else NATIVE
