"""Retrieval-copy score (Wu et al., "Retrieval Head", arXiv 2404.15574).

When the model writes a token of the needle, does the head's strongest attention lie on that very
token in the needle? A head scores the share of needle tokens for which it does. Only samples that
the model answers right count.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_headaware.profile.probe import (
    last_logits,
    layer_windows,
    max_over_group,
    native_attention,
    row_attention,
    watch_attention,
)


def copy_scores(
    model: Any, input_ids: torch.Tensor, needle: list[int], num_answer_tokens: int
) -> torch.Tensor | None:
    """Share of needle tokens that each KV head points at when they are written.

    Args:
        input_ids: int64 [T], prompt and right answer.
        needle: token ids of the secret, as in prompt and answer.
        num_answer_tokens: how many of the last tokens are the answer.

    Returns:
        float32 [num_layers, num_kv_heads], 0 in layers that see only a window of their own; or None
        for a sample that does not count: the secret is not found token by token on both sides, or
        the model does not write it.
    """
    ids = input_ids.tolist()
    split = len(ids) - num_answer_tokens
    source, target = _find(ids[:split], needle), _find(ids[split:], needle)
    if source is None or target is None:
        return None
    rows = torch.arange(split + target - 1, split + target - 1 + len(needle))
    wanted = torch.arange(source, source + len(needle))
    scores: dict[int, torch.Tensor] = {}
    windows = layer_windows(model.config)

    def watch(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        scores[layer] = torch.zeros(key.shape[1])
        if windows[layer] is None:
            strongest = row_attention(query, key, rows, scale).argmax(-1)
            hits = (strongest == wanted).float().mean(-1)
            scores[layer] = max_over_group(hits, key.shape[1])
        return native_attention(query, key, value, scale, windows[layer])

    with watch_attention(model, watch), torch.no_grad():
        logits = last_logits(model, input_ids, num_answer_tokens)
    written = logits[target : target + len(needle)].argmax(-1)
    if written.tolist() != needle:
        return None
    return torch.stack([scores[layer] for layer in sorted(scores)])


def _find(ids: list[int], part: list[int]) -> int | None:
    for start in range(len(ids) - len(part) + 1):
        if ids[start : start + len(part)] == part:
            return start
    return None
