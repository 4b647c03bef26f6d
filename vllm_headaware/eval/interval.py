"""How far chance moves a comparison: a percentile bootstrap over prompts (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

DRAWS = 2000
LEVEL = 0.95


def relative_interval(
    tasks: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[float, float] | None:
    """Where LEVEL of all redrawn sets of prompts put the ratio of two methods' mean scores.

    Both methods answer the same prompts, so they are redrawn together; tasks weigh the same,
    however many prompts they have.

    Args:
        tasks: by task, the scores of a method and those of the one it is compared with, by prompt.

    Returns:
        Lower and upper end; None where some set of prompts leaves nothing to compare with.
    """
    generator = torch.Generator().manual_seed(0)
    sums = torch.zeros(2, DRAWS)
    for scores in tasks:
        both = torch.tensor(scores)  # [2, prompts]
        count = both.shape[1]
        drawn = torch.randint(count, (DRAWS, count), generator=generator)
        sums += both[:, drawn].mean(-1)
    if not tasks or not sums[1].all():
        return None
    rest = (1 - LEVEL) / 2
    low, high = (sums[0] / sums[1]).quantile(torch.tensor([rest, 1 - rest])).tolist()
    return low, high
