"""Moves the rows of a request's best tokens together, in all layers of a class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vllm_headaware.attention.split import HeadSplitAttention
from vllm_headaware.cache.compaction import Move
from vllm_headaware.kernels.rows import Rows
from vllm_headaware.kernels.token_scores import choose, scores
from vllm_headaware.plan import HeadClass, Plan

PIECE = 4096
"""Tokens whose scores are computed at a time; bounds memory."""


def compact(
    splits: Iterable[HeadSplitAttention], plan: Plan, move: Move, weights: torch.Tensor, rank: int
) -> None:
    """Carry out a move in every layer.

    Args:
        splits: the model's layers on this rank, in any order.
        weights: float32 [layers, KV heads, features] of token scores, on the caches' device.
        rank: of tensor parallelism.
    """
    own = plan.classes[move.class_index]
    before, after = (
        torch.tensor(ids, device=weights.device) for ids in (move.before, move.after[move.first :])
    )
    first_head = rank * (plan.geometry.num_kv_heads // plan.tensor_parallel_size)
    for split in splits:
        children: Any = split.by_class
        for child, heads in zip(children, split.heads, strict=True):
            if child.head_class.name == own.name:
                all_heads = [first_head + head for head in heads]
                _compact_heads(
                    split,
                    child.kv_cache,
                    own,
                    before,
                    after,
                    move.num_tokens,
                    weights[split.layer, all_heads],
                )


def _compact_heads(
    split: HeadSplitAttention,
    cache: torch.Tensor,
    own: HeadClass,
    before: torch.Tensor,
    after: torch.Tensor,
    num_tokens: int,
    weights: torch.Tensor,
) -> None:
    """The heads that a layer has of the class.

    Args:
        before, after: ids of the blocks that hold the request's tokens, and of those that will hold
            what stays.
    """
    assert split.kernels.rows is not None, "models that cannot be compacted are refused"
    take, put = split.kernels.rows
    dtype, block = own.policy.dtype, own.block_tokens
    rows = take(cache[before], dtype, split.head_size)
    count = num_tokens - (len(before) - len(after)) * block
    found = _scores(split, rows, dtype, num_tokens, weights)
    kept = choose(found, count, own.sink_blocks * block, min(own.policy.recent, count))
    blocks = cache[after]
    put(rows.of(kept).padded(len(after) * block), dtype, blocks)
    cache[after] = blocks


def _scores(
    split: HeadSplitAttention, rows: Rows, dtype: str, num_tokens: int, weights: torch.Tensor
) -> torch.Tensor:
    """Scores of a request's tokens: float32 [heads, num_tokens]."""
    cos, sin = split.rotation(num_tokens)
    pieces = []
    for begin in range(0, num_tokens, PIECE):
        part = slice(begin, min(begin + PIECE, num_tokens))
        key, value = rows.between(part.start, part.stop).numbers(dtype)
        pieces.append(scores(key, value, weights, cos[part], sin[part]))
    return torch.cat(pieces, 1)
