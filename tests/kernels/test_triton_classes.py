"""What the Triton kernels are told of classes."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_headaware.kernels.triton.classes import RECIPROCAL_BITS, reciprocal
from vllm_headaware.kernels.triton.support import GRANULE

LONGEST = 16 * 2**20
"""Tokens, more than any model reads."""


@pytest.mark.parametrize("block", [32, 96, 224, 416, 992, 2048])
def test_a_product_finds_the_block_of_every_granule(block: int) -> None:
    granules = np.arange(LONGEST // GRANULE, dtype=np.int64)
    found = granules * reciprocal(block) >> RECIPROCAL_BITS
    assert (found == granules * GRANULE // block).all()
