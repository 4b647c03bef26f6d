"""Which of the kernels run on this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_headaware.kernels.cpu.library import INSTRUCTION_SETS, find_kernel
from vllm_headaware.kernels.cpu.support import why_not_native
from vllm_headaware.kernels.triton.support import why_not_triton


@dataclass(frozen=True)
class Here:
    """A machine's device.

    Attributes:
        device: "cpu", or the GPU's name.
        memory_bytes: of the GPU; None on a CPU.
    """

    device: str
    memory_bytes: int | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether vLLM would serve on an NVIDIA GPU."""
        return self.memory_bytes is not None

    def kernels(self, head_size: int, group_size: int) -> str:
        """What serves heads of `head_size` elements, `group_size` query heads each, and why."""
        if self.on_gpu:
            reason = why_not_triton(head_size, group_size)
            return f"none: {reason}" if reason else "Triton: vLLM's model runner V2 serves GPUs"
        if reason := why_not_native(head_size, group_size):
            return f"vLLM's own op, in the model's dtype: {reason}"
        return f"native, for {next(name for name in INSTRUCTION_SETS if find_kernel(name))}"


def look() -> Here:
    """The first NVIDIA GPU that torch sees, else the CPU."""
    if torch.version.hip is None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Here(properties.name, properties.total_memory)
    return Here("cpu")
