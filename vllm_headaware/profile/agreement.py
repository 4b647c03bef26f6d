"""How far can a ranking be trusted? Rank correlations between sample halves and between methods."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import fmean

import torch

HALVINGS = 50


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation of two equally shaped score tensors; ties share their mean rank.

    Returns 0.0 when either side is constant.
    """
    a, b = (_ranks(scores.flatten()) for scores in (first, second))
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def split_half(score: Callable[[list[int]], torch.Tensor], samples: int) -> float:
    """Spearman correlation between the scores from two halves of the samples.

    The mean over HALVINGS, in each of which neighbours go to different halves by lot: samples of a
    kind stand together, and one halving alone is off by some hundredths.

    Args:
        score: scores from the samples of these indices.
        samples: how many there are; fewer than 2 give 0.0. The last of an odd number is left out.
    """
    if samples < 2:
        return 0.0
    lot = random.Random(0)
    found = []
    for _ in range(HALVINGS):
        pairs = [lot.sample([i, i + 1], 2) for i in range(0, samples - 1, 2)]
        first, second = (list(half) for half in zip(*pairs, strict=True))
        found.append(spearman(score(first), score(second)))
    return fmean(found)


def _ranks(values: torch.Tensor) -> torch.Tensor:
    unique, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    del unique
    last = counts.cumsum(0)
    return ((last - counts + last - 1).double() / 2)[inverse]
