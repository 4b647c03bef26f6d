"""What metadata builders need to know of the requests of a step: their windows, and how long their
prompts are.

vLLM tells a builder where its requests' tokens and blocks are, but not which requests they are. So
the model runner's step leaves this here while builders run (vllm_compat/worker/v1.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch


class ClassWindows(NamedTuple):
    """Windows of a step's requests in one class, all int32 [num_requests] in tokens.

    Attributes:
        windows: 0 or less: everything from token -window on. None: the class's own for all.
        reading: the same for queries of a prompt.
        prompts: lengths of the prompts.
    """

    windows: torch.Tensor | None = None
    reading: torch.Tensor | None = None
    prompts: torch.Tensor | None = None


_windows: Mapping[str, ClassWindows] = {}


@contextmanager
def during(windows: Mapping[str, ClassWindows]) -> Iterator[None]:
    """Set what windows_of() gives, by class name; a class that is missing has the plan's window for
    all requests and queries."""
    global _windows
    before, _windows = _windows, windows
    try:
        yield
    finally:
        _windows = before


def windows_of(class_name: str, num_requests: int) -> ClassWindows:
    """The windows of a class, padded to a number of requests."""
    own = _windows.get(class_name, ClassWindows())
    return ClassWindows(*(_padded(values, num_requests) for values in own))


def _padded(values: torch.Tensor | None, num_requests: int) -> torch.Tensor | None:
    if values is None or values.shape[0] == num_requests:
        return values
    padded = values.new_zeros(num_requests)  # padding rows have no queries
    padded[: values.shape[0]] = values
    return padded
