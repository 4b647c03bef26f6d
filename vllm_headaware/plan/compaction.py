"""How much of a prompt unlimited heads keep once it has been read. Plain integers."""

from __future__ import annotations

import math


def first_kept_block(num_tokens: int, keep: float, recent: int, block_tokens: int) -> int:
    """Index of the block from which on the tokens lie that stay of num_tokens, besides sinks.

    Args:
        keep: share (0 to 1] of the tokens that stay.
        recent: how many stay at least.
    """
    if keep >= 1:
        return 0
    kept = max(math.ceil(num_tokens * keep), recent)
    return max(num_tokens - kept, 0) // block_tokens
