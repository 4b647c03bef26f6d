"""What requests of the current step have of their own, for metadata builders: windows, evictions.

vLLM tells a builder where its requests' tokens and blocks are, but not which requests they are. So
the model runner's step leaves their windows here while builders run (vllm_compat/budgets.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from vllm_headaware.attention.heavy import CompactStep, compact

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


_evicted: Sequence[frozenset[int]] | None = None
_compacted: list[CompactStep] = []


@contextmanager
def evicting(evicted: Sequence[frozenset[int]]) -> Iterator[list[CompactStep]]:
    """Set the evicted blocks of the step's requests; yields the steps builders made without them.

    Args:
        evicted: per request the places of its evicted blocks.
    """
    global _evicted, _compacted
    _evicted, _compacted = evicted, []
    try:
        yield _compacted
    finally:
        _evicted, _compacted = None, []


def without_evicted(
    seq_lens: torch.Tensor, block_table: torch.Tensor, block_tokens: int
) -> CompactStep:
    """The step without evicted blocks; see attention/heavy.py."""
    step = compact(seq_lens, block_table, _evicted or (), block_tokens)
    _compacted.append(step)
    return step


def of_class(name: str, num_requests: int) -> torch.Tensor | None:
    """int32 [num_requests], or None where the class's own window holds for all."""
    windows = _current.get(name)
    if windows is None or windows.shape[0] == num_requests:
        return windows
    padded = windows.new_zeros(num_requests)  # padding rows have no queries
    padded[: windows.shape[0]] = windows
    return padded
