"""How far can a ranking be trusted? Rank correlations between sample halves and between methods."""

from __future__ import annotations

import torch


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation of two equally shaped score tensors; ties share their mean rank.

    Returns 0.0 when either side is constant.
    """
    a, b = (_ranks(scores.flatten()) for scores in (first, second))
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def split_half(per_sample: torch.Tensor) -> float:
    """Spearman correlation between the mean scores of even and of odd samples.

    Args:
        per_sample: float32 [samples, layers, KV heads]; fewer than 2 samples give 0.0.
    """
    if per_sample.shape[0] < 2:
        return 0.0
    return spearman(per_sample[::2].mean(0), per_sample[1::2].mean(0))


def _ranks(values: torch.Tensor) -> torch.Tensor:
    unique, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    del unique
    last = counts.cumsum(0)
    return ((last - counts + last - 1).double() / 2)[inverse]
