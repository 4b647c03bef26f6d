"""Rows of K and V as they are stored, taken out of blocks: what compaction moves.

How rows lie in a block is told by kernels/cpu/rows.py and kernels/triton/rows.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.kernels.reference import hadamard


@dataclass(frozen=True)
class Rows:
    """K and V of some tokens of some KV heads.

    Attributes:
        key, value: [heads, tokens, head_size], numbers of the KV format's dtype; where it is
            quantised uint8, the integers, those of 8 bits plus 128.
        scales: bfloat16 [heads, tokens, 0 to 4]: scale of K, scale of V, then K's lowest and V's
            lowest value, of those that have one.
    """

    key: torch.Tensor
    value: torch.Tensor
    scales: torch.Tensor

    def of(self, tokens: torch.Tensor) -> Rows:
        """The rows of some tokens, int64 [heads, count], each head its own."""

        def pick(x: torch.Tensor) -> torch.Tensor:
            return x.gather(1, tokens[..., None].expand(-1, -1, x.shape[2]))

        return Rows(pick(self.key), pick(self.value), pick(self.scales))

    def between(self, begin: int, end: int) -> Rows:
        """The rows of tokens begin .. end - 1."""
        return Rows(self.key[:, begin:end], self.value[:, begin:end], self.scales[:, begin:end])

    def padded(self, count: int) -> Rows:
        """With rows of zeros at the end, so that there are `count`."""

        def pad(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(x, (0, 0, 0, count - x.shape[1]))

        return Rows(pad(self.key), pad(self.value), pad(self.scales))

    def numbers(self, kv_format: str) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V as a model's queries meet them: float32 [heads, tokens, head_size]."""
        found, lows = [], 2
        both = (self.key, FORMATS[kv_format].key), (self.value, FORMATS[kv_format].value)
        for index, (rows, row_format) in enumerate(both):
            x = rows.float()
            if row_format.extra_bytes:
                scale = self.scales[..., index, None].float()
                if row_format.bits == 8:
                    x = (x - 128) * scale
                else:
                    x = x * scale + self.scales[..., lows, None].float()
                    lows += 1
                x = x @ _turn(x.shape[-1], x.device)
            found.append(x)
        return found[0], found[1]


@functools.cache
def _turn(size: int, device: torch.device) -> torch.Tensor:
    return hadamard(size).to(device)


Take = Callable[[torch.Tensor, str, int], Rows]
"""(blocks [n, heads, block_tokens, ...] of a cache, KV format, head size) -> rows of n x
block_tokens tokens."""
Put = Callable[[Rows, str, torch.Tensor], None]
"""(rows, KV format, blocks [n, heads, block_tokens, ...]): the blocks are filled with the rows of n
x block_tokens tokens."""


def by_head(x: torch.Tensor) -> torch.Tensor:
    """[blocks, heads, block_tokens, ...] -> [heads, tokens, ...]."""
    return x.transpose(0, 1).flatten(1, 2)


def by_block(x: torch.Tensor, blocks: int) -> torch.Tensor:
    """[heads, tokens, ...] -> [blocks, heads, block_tokens, ...]."""
    return x.unflatten(1, (blocks, -1)).transpose(0, 1)
