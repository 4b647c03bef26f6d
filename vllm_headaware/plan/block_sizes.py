"""The search for block sizes: tokens per block of each class, so that every class fills a block."""

from __future__ import annotations

import itertools
import math

from vllm_headaware.plan.dealing import Dealing
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.plan.head_class import HeadClass

BLOCK_QUANTUM = 32
"""Block sizes are multiples of this: the CPU attention op is fastest on them."""
MAX_ALIGNMENT = 256
"""Bound on the least common multiple of the block sizes, in tokens: prefix hits land on it."""
REFERENCE_LENGTHS = (2048, 8192, 32768)
"""Request lengths, in tokens, whose mean bytes the block sizes are chosen to minimise."""


def choose_block_sizes(dealing: Dealing, geometry: ModelGeometry) -> tuple[int, ...]:
    """Tokens per block of each class: the fewest bytes per request, mean over typical lengths."""
    candidates = range(BLOCK_QUANTUM, MAX_ALIGNMENT + 1, BLOCK_QUANTUM)
    lengths = [n for n in REFERENCE_LENGTHS if n <= geometry.max_model_len]
    lengths = lengths or [geometry.max_model_len]
    counts = [dealing.counts(rank) for rank in range(dealing.tp)]

    def cost(sizes: tuple[int, ...]) -> tuple[float, int]:
        block = sum(dealing.block_bytes(sizes, own) for own in counts)
        classes = [HeadClass(p, s, 1) for p, s in zip(dealing.policies, sizes, strict=True)]
        relative = sum(block * sum(c.blocks(n) for c in classes) / n for n in lengths)
        return relative, sum(sizes)

    fitting = (
        sizes
        for sizes in itertools.product(
            # Where blocks are evicted by score, small ones tell tokens apart.
            *(
                [BLOCK_QUANTUM] if p.heavy_hitters is not None else candidates
                for p in dealing.policies
            )
        )
        if math.lcm(*sizes) <= MAX_ALIGNMENT
    )
    return min(fitting, key=cost)
