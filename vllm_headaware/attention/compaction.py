"""Moves the rows of a request's best tokens together, in all layers of a class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vllm_headaware.attention.split import HeadSplitAttention
from vllm_headaware.cache.compaction import Move
from vllm_headaware.kernels.token_scores import choose, scores
from vllm_headaware.plan import Plan


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
    sinks = own.sink_blocks * own.block_tokens
    count = move.num_tokens - move.first * own.block_tokens
    first_head = rank * (plan.geometry.num_kv_heads // plan.tensor_parallel_size)
    for split in splits:
        children: Any = split.by_class
        for child, heads in zip(children, split.heads, strict=True):
            if child.head_class.name != own.name:
                continue
            cache = child.kv_cache
            assert split.kernels.rows is not None, "models that cannot be compacted are refused"
            take, put = split.kernels.rows
            before, after = (
                torch.tensor(ids, device=cache.device)
                for ids in (move.before, move.after[move.first :])
            )
            rows = take(cache[before], own.policy.dtype, split.head_size)
            key, value = (x[:, : move.num_tokens] for x in rows.numbers(own.policy.dtype))
            cos, sin = split.rotation(move.num_tokens)
            head_weights = weights[split.layer, [first_head + head for head in heads]]
            kept = choose(
                scores(key, value, head_weights, cos, sin),
                count,
                sinks,
                min(own.policy.recent, count),
            )
            blocks = cache[after]
            put(rows.of(kept).padded(len(after) * own.block_tokens), own.policy.dtype, blocks)
            cache[after] = blocks
