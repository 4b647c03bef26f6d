"""What metadata builders need to know of the requests of a step: windows of their own, and how long
their prompts are.

vLLM tells a builder where its requests' tokens and blocks are, but not which requests they are. So
the model runner's step leaves this here while builders run (vllm_compat/worker/v1.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

_windows: Mapping[str, torch.Tensor] = {}
_prompts: torch.Tensor | None = None


@contextmanager
def during(windows: Mapping[str, torch.Tensor], prompts: torch.Tensor | None) -> Iterator[None]:
    """Set what windows_of() and prompt_lens() give.

    Args:
        windows: by class name int32 [num_requests], tokens, 0 = everything. A class that is missing
            has one window for all requests, the plan's.
        prompts: int32 [num_requests], tokens; None: windows do not depend on them.
    """
    global _windows, _prompts
    before = _windows, _prompts
    _windows, _prompts = windows, prompts
    try:
        yield
    finally:
        _windows, _prompts = before


def windows_of(class_name: str, num_requests: int) -> torch.Tensor | None:
    """int32 [num_requests], or None where the class's own window holds for all."""
    return _padded(_windows.get(class_name), num_requests)


def prompt_lens(num_requests: int) -> torch.Tensor | None:
    """int32 [num_requests], tokens; None where windows are the same for prompts."""
    return _padded(_prompts, num_requests)


def _padded(values: torch.Tensor | None, num_requests: int) -> torch.Tensor | None:
    if values is None or values.shape[0] == num_requests:
        return values
    padded = values.new_zeros(num_requests)  # padding rows have no queries
    padded[: values.shape[0]] = values
    return padded
