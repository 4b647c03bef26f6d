"""Induction score: prefix matching on repeated random tokens (Olsson et al. 2022).

On a random sequence that is repeated, an induction head at a token looks at what followed that
token the first time: from position n + i to position i + 1. It needs no text.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.profile.probe import (
    max_over_group,
    native_attention,
    row_attention,
    watch_attention,
)


def induction_scores(
    model: Any, vocab_size: int, length: int, generator: torch.Generator
) -> torch.Tensor:
    """Mean attention from the second occurrence to the token after the first.

    Args:
        length: tokens of the random sequence, before it is repeated.
        generator: on the CPU, so that every device is given the same tokens.

    Returns:
        float32 [num_layers, num_kv_heads], 0 to 1, on the CPU; 0 in layers that see only a window
        of their own.
    """
    once = torch.randint(vocab_size, (length,), generator=generator)
    input_ids = torch.cat([once, once]).to(model.device)
    scores: dict[int, torch.Tensor] = {}
    windows = layer_windows(model.config)

    def watch(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        scores[layer] = torch.zeros(key.shape[1])
        if windows[layer] is None:
            scores[layer] = follower_attention(query, key, length, scale)
        return native_attention(query, key, value, scale, windows[layer])

    with watch_attention(model, watch), torch.no_grad():
        model(input_ids[None], use_cache=False)
    return torch.stack([scores[layer] for layer in sorted(scores)])


def follower_attention(
    query: torch.Tensor, key: torch.Tensor, length: int, scale: float
) -> torch.Tensor:
    """Mean attention of each KV head of a layer from tokens that are said again to those that came
    next the first time.

    Args:
        query: [1, Hq, 2 * length, D]; key: [1, Hkv, 2 * length, D]

    Returns:
        float32 [Hkv], on the CPU.
    """
    rows = torch.arange(length, 2 * length - 1, device=query.device)
    attention = row_attention(query, key, rows, scale)
    followers = (rows - length + 1)[None, :, None].expand(len(attention), -1, 1)
    matched = attention.gather(-1, followers)
    return max_over_group(matched.mean(dim=(1, 2)), key.shape[1]).cpu()
