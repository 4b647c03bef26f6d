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

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm_headaware.budget import (
    Windows,
    deal_budget,
    mean_tokens,
    reading_window,
    rough_windows,
)
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.geometry import ModelGeometry
from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.policies import POLICIES
from vllm_headaware.policies.base import AUTO, HeadPolicy

if TYPE_CHECKING:
    from vllm_headaware.profile.format import HeadProfile

BLOCK_QUANTUM = 32
"""Block sizes are multiples of this: the CPU attention op is fastest on them."""
MAX_ALIGNMENT = 256
"""Bound on the least common multiple of the block sizes, in tokens: prefix hits land on it."""
REFERENCE_LENGTHS = (2048, 8192, 32768)
"""Request lengths, in tokens, whose mean bytes the block sizes are chosen to minimise."""


@dataclass(frozen=True)
class HeadClass:
    """One class of KV heads of a plan; one KV-cache group of the engine."""

    policy: HeadPolicy
    block_tokens: int
    num_heads: int

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def sink_blocks(self) -> int:
        """Whole blocks that hold the sinks."""
        return -(-self.policy.sink // self.block_tokens)

    @property
    def heavy_blocks(self) -> int:
        """Blocks kept where blocks are evicted by score: the budget, at least sinks and two."""
        return max((self.policy.heavy or 0) // self.block_tokens, self.sink_blocks + 2)

    def first_window_block(self, num_processed: int, num_prompt: int = 0) -> int:
        """Index of the first block the next query (position num_processed) sees by its window."""
        reading = num_processed < num_prompt
        window = self.reading_window(self.policy.window) if reading else self.policy.window
        if window is None:
            return 0
        return max(num_processed - window + 1, 0) // self.block_tokens

    def reading_window(self, window: int | None) -> int | None:
        """What a request's own window is while its prompt is read."""
        return reading_window(window, self.policy.prefill_window)

    def blocks(self, num_tokens: int, num_processed: int | None = None, num_prompt: int = 0) -> int:
        """Blocks one request holds.

        Args:
            num_tokens: tokens that have a slot, computed or being computed.
            num_processed: tokens whose step is over; num_tokens - 1 (decoding) when None.
            num_prompt: of these, tokens of the prompt; 0 counts all as generated.
        """
        if num_processed is None:
            num_processed = max(num_tokens - 1, 0)
        total = -(-num_tokens // self.block_tokens)
        if self.policy.heavy is not None:
            in_flight = total - -(-num_processed // self.block_tokens)
            return min(total, self.heavy_blocks + in_flight)
        first = self.first_window_block(num_processed, num_prompt)
        return total - max(first - self.sink_blocks, 0)

    def with_window(self, window: int | None) -> HeadClass:
        """The class as a request sees it that has a window of its own."""
        if window == self.policy.window:
            return self
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, window=window))

    def most_blocks(self, num_tokens: int, window: int | None, in_flight: int = 1) -> int:
        """Most blocks a request holds at any moment until it has num_tokens tokens.

        Args:
            window: the request's own.
            in_flight: tokens that are scheduled and whose step is not over.
        """
        total = -(-num_tokens // self.block_tokens)
        if window is None and self.policy.heavy is not None:
            return min(total, self.heavy_blocks + 1 + -(-in_flight // self.block_tokens))
        if window is None:
            return total
        recent = window - 1 + in_flight + 2 * self.block_tokens - 2
        return min(total, self.sink_blocks + recent // self.block_tokens)


@dataclass(frozen=True)
class Plan:
    """Classes and bytes of one model under one policy.

    Attributes:
        assignment: for [layer][KV head] the index of its class in `classes`.
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
        """Bytes of the blocks a decoding request of num_tokens holds: padding included."""
        return self.block_bytes * sum(self.blocks(num_tokens, windows=windows).values())

    def reading_bytes(self, num_prompt: int) -> int:
        """Bytes of the blocks a request holds whose prompt of num_prompt tokens is being read, when
        only the last token is left: windows are those of prefill."""
        return self.block_bytes * sum(self.blocks(num_prompt, num_prompt=num_prompt).values())

    def dense_bytes(self, num_tokens: int) -> int:
        """Bytes the same tokens take when every head keeps them all, without block rounding."""
        return num_tokens * self.geometry.head_token_bytes * self.geometry.num_heads_total

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
        blocks = [c.blocks(num_tokens) for c in self.classes]
        lost = sum(n * self.waste(index) for index, n in enumerate(blocks))
        return lost / sum(blocks)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; from_dict gives the plan back."""
        return {
            "policy": self.policy,
            "geometry": dataclasses.asdict(self.geometry),
            "classes": [
                {**dataclasses.asdict(c.policy), "block_tokens": c.block_tokens}
                for c in self.classes
            ],
            "assignment": [list(row) for row in self.assignment],
            "tensor_parallel_size": self.tensor_parallel_size,
            "budget": self.budget,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The inverse of to_dict."""
        assignment = tuple(tuple(row) for row in values["assignment"])
        counts = [sum(row.count(i) for row in assignment) for i in range(len(values["classes"]))]
        return cls(
            policy=values["policy"],
            geometry=ModelGeometry(**values["geometry"]),
            classes=tuple(
                HeadClass(
                    HeadPolicy(**{f.name: c[f.name] for f in dataclasses.fields(HeadPolicy)}),
                    c["block_tokens"],
                    counts[i],
                )
                for i, c in enumerate(values["classes"])
            ),
            assignment=assignment,
            tensor_parallel_size=values["tensor_parallel_size"],
            budget=values["budget"],
        )


def make_plan(
    config: KVPolicyConfig,
    geometry: ModelGeometry,
    profile: HeadProfile | None = None,
    tensor_parallel_size: int = 1,
) -> Plan:
    """Classes from the policy, block sizes from a search, and spare room given to better heads.

    Raises:
        HeadAwareError: the policy needs a profile and there is none, or the heads cannot be dealt
            to the ranks.
    """
    if geometry.num_kv_heads % tensor_parallel_size:
        raise HeadAwareError(
            f"--tensor-parallel-size {tensor_parallel_size} does not divide the model's"
            f" {geometry.num_kv_heads} KV heads; choose a divisor"
        )
    policies, classes, ranks = POLICIES[config.policy]().classify(config, geometry, profile)
    policies = tuple(
        dataclasses.replace(p, dtype=geometry.kv_dtype) if p.dtype == AUTO else p for p in policies
    )
    if config.budget:
        counts = [sum(row.count(index) for row in classes) for index in range(len(policies))]
        rough = rough_windows(policies, counts, config.budget, geometry.max_model_len)
        policies = tuple(
            p if p.heavy is not None else dataclasses.replace(p, window=window)
            for p, window in zip(policies, rough, strict=True)
        )
    sizes = [FORMATS[p.dtype].token_bytes(geometry.head_size) for p in policies]
    dealing = _Dealing(policies, sizes, classes, ranks, tensor_parallel_size)
    dealing.give_every_rank_every_class()
    block_tokens = _choose_block_sizes(dealing, geometry)
    dealing.fill_spare_room(block_tokens)
    plan = _build(config.policy, geometry, dealing, block_tokens)
    return _within_budget(plan, config.budget) if config.budget else plan


def _within_budget(plan: Plan, budget: int) -> Plan:
    """The plan with the windows that a budget gives its classes, now that blocks are known."""
    if any(c.policy.heavy is not None for c in plan.classes):
        return dataclasses.replace(plan, budget=budget)
    windows = deal_budget(plan.classes, budget, plan.geometry.max_model_len)
    classes = tuple(c.with_window(w) for c, w in zip(plan.classes, windows, strict=True))
    return dataclasses.replace(plan, classes=classes, budget=budget)


class _Dealing:
    """KV heads by class and tensor-parallel rank, while a plan is being made."""

    def __init__(
        self,
        policies: tuple[HeadPolicy, ...],
        token_bytes: list[int],
        classes: list[list[int]],
        ranks: list[list[int]],
        tensor_parallel_size: int,
    ) -> None:
        used = sorted({index for row in classes for index in row})
        self.policies = tuple(policies[index] for index in used)
        self.token_bytes = [token_bytes[index] for index in used]
        self.classes = [[used.index(index) for index in row] for row in classes]
        self.best_first = sorted(
            ((y, h) for y, row in enumerate(ranks) for h in range(len(row))),
            key=lambda at: ranks[at[0]][at[1]],
        )
        self.tp = tensor_parallel_size
        self.per_rank = len(classes[0]) // tensor_parallel_size

    def counts(self, rank: int) -> list[int]:
        """Heads of each class on a rank."""
        low, high = rank * self.per_rank, (rank + 1) * self.per_rank
        on_rank = [index for row in self.classes for index in row[low:high]]
        return [on_rank.count(index) for index in range(len(self.policies))]

    def promote(self, index: int, rank: int) -> bool:
        """Move the best head of the less generous classes of a rank up to class `index`.

        The last head of a class on a rank stays, since every rank must hold every class.
        """
        counts = self.counts(rank)
        for y, h in self.best_first:
            own = self.classes[y][h]
            if h // self.per_rank == rank and own > index and counts[own] > 1:
                self.classes[y][h] = index
                return True
        return False

    def give_every_rank_every_class(self) -> None:
        for rank in range(self.tp):
            for index, policy in enumerate(self.policies):
                if self.counts(rank)[index] == 0 and not self.promote(index, rank):
                    raise HeadAwareError(
                        f"tensor-parallel rank {rank} would have no {policy.name} heads;"
                        " use a smaller --tensor-parallel-size or a smaller --kv-retrieval-share"
                    )

    def block_bytes(self, block_tokens: tuple[int, ...], counts: list[int]) -> int:
        """Bytes of one block on a rank with `counts` heads of each class."""
        parts = zip(counts, block_tokens, self.token_bytes, strict=True)
        return max(heads * tokens * size for heads, tokens, size in parts)

    def fill_spare_room(self, block_tokens: tuple[int, ...]) -> None:
        """Promote heads into room that blocks have anyway: more history for the same bytes."""
        for rank in range(self.tp):
            block = self.block_bytes(block_tokens, self.counts(rank))
            for index, tokens in enumerate(block_tokens[:-1]):
                size = tokens * self.token_bytes[index]
                while (self.counts(rank)[index] + 1) * size <= block:
                    if not self.promote(index, rank):
                        break


def _choose_block_sizes(dealing: _Dealing, geometry: ModelGeometry) -> tuple[int, ...]:
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
            *([BLOCK_QUANTUM] if p.heavy is not None else candidates for p in dealing.policies)
        )
        if math.lcm(*sizes) <= MAX_ALIGNMENT
    )
    return min(fitting, key=cost)


def _build(policy: str, geometry: ModelGeometry, dealing: _Dealing, sizes: tuple[int, ...]) -> Plan:
    totals = [sum(dealing.counts(r)[i] for r in range(dealing.tp)) for i in range(len(sizes))]
    return Plan(
        policy=policy,
        geometry=geometry,
        classes=tuple(
            HeadClass(p, size, total)
            for p, size, total in zip(dealing.policies, sizes, totals, strict=True)
        ),
        assignment=tuple(tuple(row) for row in dealing.classes),
        tensor_parallel_size=dealing.tp,
    )
