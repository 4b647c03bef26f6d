"""Windows that requests of the current step have of their own, for metadata builders.

vLLM tells a builder where its requests' tokens and blocks are, but not which requests they are. So
the model runner's step leaves their windows here while builders run (vllm_compat/budgets.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

_current: Mapping[str, torch.Tensor] = {}


@contextmanager
def during(windows: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Set the windows by class name: int32 [num_requests], tokens, 0 = everything.

    A class that is missing has one window for all requests, the plan's.
    """
    global _current
    before, _current = _current, windows
    try:
        yield
    finally:
        _current = before


def of_class(name: str, num_requests: int) -> torch.Tensor | None:
    """int32 [num_requests], or None where the class's own window holds for all."""
    windows = _current.get(name)
    if windows is None or windows.shape[0] == num_requests:
        return windows
    padded = windows.new_zeros(num_requests)  # padding rows have no queries
    padded[: windows.shape[0]] = windows
    return padded
