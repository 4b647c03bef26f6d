"""How far can a ranking be trusted? Rank correlations between sample halves and between methods."""

from __future__ import annotations

from collections.abc import Callable

import torch


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation of two equally shaped score tensors; ties share their mean rank.

    Returns 0.0 when either side is constant.
    """
    a, b = (_ranks(scores.flatten()) for scores in (first, second))
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def split_half(score: Callable[[slice], torch.Tensor], samples: int) -> float:
    """Spearman correlation between the scores from even and from odd samples.

    Args:
        score: scores from a part of the samples.
        samples: how many there are; fewer than 2 give 0.0.
    """
    if samples < 2:
        return 0.0
    return spearman(score(slice(0, None, 2)), score(slice(1, None, 2)))


def _ranks(values: torch.Tensor) -> torch.Tensor:
    unique, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    del unique
    last = counts.cumsum(0)
    return ((last - counts + last - 1).double() / 2)[inverse]
