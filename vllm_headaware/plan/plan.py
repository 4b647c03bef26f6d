"""The plan: which KV head is in which class, tokens per block, and every byte count there is.

This module holds the one byte formula of the project. Metrics, the command line, the README and the
tests call it; nobody else multiplies heads by tokens by bytes.

    token_bytes      = K and V of one token of one head, in the class's KV format, scales included
    block_bytes      = max over classes of (heads of the class x block_tokens x token_bytes)
    request_bytes(n) = block_bytes x sum over classes of the blocks it holds at n tokens

A block holds `block_tokens` tokens of *all* heads of one class in *all* layers, so any class can
take any block of the pool. What a class leaves of a block unused is its waste.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.plan.budget import mean_tokens
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.plan.windows import Windows


@dataclass(frozen=True)
class Plan:
    """Classes and bytes of one model under one policy.

    Attributes:
        assignment: for `[layer][KV head]` the index of its class in `classes`.
        tensor_parallel_size: ranks the KV heads are dealt to, in contiguous runs. All ranks hold
            the same block counts; bytes are those of the whole model unless a rank is named.
    """

    policy: str
    geometry: ModelGeometry
    classes: tuple[HeadClass, ...]
    assignment: tuple[tuple[int, ...], ...]
    tensor_parallel_size: int = 1
    budget: int = 0

    @property
    def windows(self) -> Windows:
        """What each class keeps of a request that has no budget of its own."""
        return tuple(c.policy.window for c in self.classes)

    def kept_windows(self, num_prompt: int) -> Windows:
        """The same once its prompt of num_prompt tokens has been read."""
        return tuple(c.kept_window(num_prompt) for c in self.classes)

    def mean_tokens(self, windows: Windows | None = None) -> float:
        """Tokens a KV head holds of a request of the longest length, mean over heads: the achieved
        budget, with rounding to blocks."""
        return mean_tokens(self.classes, windows or self.windows, self.geometry.max_model_len)

    def heads(self, layer: int, rank: int | None = None) -> tuple[tuple[int, ...], ...]:
        """KV head indices of each class in a layer; of a rank they count from its first head."""
        row = self.assignment[layer]
        if rank is not None:
            per_rank = self.geometry.num_kv_heads // self.tensor_parallel_size
            row = row[rank * per_rank : (rank + 1) * per_rank]
        return tuple(
            tuple(h for h, own in enumerate(row) if own == index)
            for index in range(len(self.classes))
        )

    def num_heads(self, index: int, rank: int) -> int:
        """KV heads of class `index` over all layers of a rank."""
        layers = range(self.geometry.num_layers)
        return sum(len(self.heads(layer, rank)[index]) for layer in layers)

    def rank_block_bytes(self, rank: int) -> int:
        """Bytes of one block on one rank."""
        return max(
            self.num_heads(index, rank) * head_class.block_tokens * self.token_bytes(index)
            for index, head_class in enumerate(self.classes)
        )

    def token_bytes(self, index: int) -> int:
        """Bytes of K and V of one token in one KV head of class `index`, scales included."""
        return FORMATS[self.classes[index].policy.dtype].token_bytes(self.geometry.head_size)

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one block, all ranks together."""
        return sum(self.rank_block_bytes(rank) for rank in range(self.tensor_parallel_size))

    @property
    def alignment(self) -> int:
        """Tokens on whose multiples prefix-cache hits land."""
        return math.lcm(*(head_class.block_tokens for head_class in self.classes))

    def blocks(
        self,
        num_tokens: int,
        num_processed: int | None = None,
        windows: Windows | None = None,
        num_prompt: int = 0,
    ) -> dict[str, int]:
        """Blocks one request holds, by class, under its own windows; see HeadClass.blocks."""
        return {
            c.name: c.with_window(window).blocks(num_tokens, num_processed, num_prompt)
            for c, window in zip(self.classes, windows or self.windows, strict=True)
        }

    def request_bytes(self, num_tokens: int, windows: Windows | None = None) -> int:
        """Bytes of the blocks a decoding request of num_tokens holds: padding included. Its prompt
        was all of it, where heads keep a share of prompts."""
        windows = windows or self.kept_windows(num_tokens)
        return self.block_bytes * sum(self.blocks(num_tokens, windows=windows).values())

    def reading_bytes(self, num_prompt: int) -> int:
        """Bytes of the blocks a request holds whose prompt of num_prompt tokens is being read, when
        only the last token is left: windows are those of prefill."""
        return self.block_bytes * sum(self.blocks(num_prompt, num_prompt=num_prompt).values())

    def dense_bytes(self, num_tokens: int, num_sliding: int | None = None) -> int:
        """Bytes the same tokens take when every head keeps them all, without block rounding; heads
        with a sliding window of their own keep no more than that.

        Args:
            num_sliding: tokens that each of those keeps of all requests; None: of one request.
        """
        geometry = self.geometry
        if num_sliding is None:
            num_sliding = min(num_tokens, geometry.own_window or 0)
        full = len(geometry.full_layers)
        tokens = full * num_tokens + (geometry.num_layers - full) * num_sliding
        return tokens * geometry.head_token_bytes * geometry.num_kv_heads

    def head_bytes(self, index: int, num_blocks: int) -> float:
        """Bytes one KV head of class `index` is charged for num_blocks blocks, padding included.

        Heads of a class share a block evenly, so the sum over all heads is exactly the bytes of
        all blocks held.
        """
        return num_blocks * self.block_bytes / self.classes[index].num_heads

    def waste(self, index: int) -> float:
        """Share (0 to 1) of a block that class `index` cannot use."""
        head_class = self.classes[index]
        used = head_class.num_heads * head_class.block_tokens * self.token_bytes(index)
        return 1 - used / self.block_bytes

    def request_waste(self, num_tokens: int) -> float:
        """Share (0 to 1) of a request's bytes that no head can use: waste weighted by blocks."""
        blocks = self.blocks(num_tokens, windows=self.kept_windows(num_tokens)).values()
        lost = sum(n * self.waste(index) for index, n in enumerate(blocks))
        return lost / sum(blocks)
