"""Steps of a class whose blocks are evicted by score: tables without them, mass of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class CompactStep:
    """A step as the kernels see it, without evicted blocks.

    Whole blocks are left out, so a token keeps its place in its block and the order of tokens
    stays: causal attention over what is left is attention over what the request still has.

    Attributes:
        seq_lens: int32 [num_requests], tokens that are left.
        block_table: int32 [num_requests, width], blocks that are left, then anything.
        mass: float32, as block_table; what the kernels add up.
        places: per request the original places of its blocks, in order.
    """

    seq_lens: torch.Tensor
    block_table: torch.Tensor
    mass: torch.Tensor
    places: list[np.ndarray]

    def mass_by_place(self) -> list[list[float]]:
        """Per request the mass of each of its blocks, 0 for evicted ones."""
        rows = []
        for index, places in enumerate(self.places):
            full = np.zeros(int(places[-1]) + 1 if len(places) else 0, dtype=np.float32)
            full[places] = self.mass[index, : len(places)].numpy()
            rows.append(full.tolist())
        return rows


def compact(
    seq_lens: torch.Tensor,
    block_table: torch.Tensor,
    evicted: Sequence[frozenset[int]],
    block_tokens: int,
) -> CompactStep:
    """Leave evicted blocks out.

    Args:
        seq_lens: int32 [num_requests].
        block_table: int32 [num_requests, width].
        evicted: per request the places of its evicted blocks; rows beyond it have none.
    """
    lens, table = seq_lens.clone(), block_table.contiguous().clone()
    places = []
    for index, length in enumerate(seq_lens.tolist()):
        gone = evicted[index] if index < len(evicted) else frozenset()
        count = -(-length // block_tokens)
        left = np.array([place for place in range(count) if place not in gone], dtype=np.int64)
        if gone:
            table[index, : len(left)] = block_table[index, torch.from_numpy(left)]
            lens[index] = length - block_tokens * (count - len(left))
        places.append(left)
    mass = torch.zeros(table.shape, dtype=torch.float32)
    return CompactStep(lens, table, mass, places)


_evicted: Sequence[frozenset[int]] | None = None
_compacted: list[CompactStep] = []


@contextmanager
def evicting(evicted: Sequence[frozenset[int]]) -> Iterator[list[CompactStep]]:
    """Set the evicted blocks of the current step's requests, as requests.during() does windows.

    Args:
        evicted: per request the places of its evicted blocks.

    Yields:
        The steps that metadata builders made without them.
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
    """The step without evicted blocks."""
    step = compact(seq_lens, block_table, _evicted or (), block_tokens)
    _compacted.append(step)
    return step
