"""Which tokens a KV head will need: a score of each, from nothing but its own K and V.

The score is linear in numbers made of a token's key, before its rotation by position, and its
value: both, their squares, and the lengths of the key's rotary pairs. That a small map can tell
what KVzip (arXiv 2505.23416) finds by having a context repeated is from KVzap (arXiv 2601.07891),
who start from hidden states; a head's own K and V tell as much, and a cache has them when a prompt
has been read. Weights are of profile/token_scores.py.
"""

from __future__ import annotations

import torch


def features(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What a score is made of.

    Args:
        key: [..., head_size], not rotated by position; value: likewise.

    Returns:
        [..., num_features(head_size)], see score_size.py.
    """
    first, second = key.chunk(2, -1)
    pairs = (first.square() + second.square()).sqrt()
    return torch.cat([key, value, key.square(), value.square(), pairs], -1)


def unrotated(key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Keys as they were before rotary embedding (arXiv 2104.09864) of neighbouring halves.

    Args:
        key: [heads, tokens, head_size].
        cos, sin: [tokens, half of the channels that are rotated, which come first].
    """
    half = cos.shape[-1]
    first, second, rest = key.split([half, half, key.shape[-1] - 2 * half], -1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin, rest], -1)


def scores(
    key: torch.Tensor,
    value: torch.Tensor,
    weights: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """Scores of tokens: float32 [heads, tokens]; only their order within a head means anything.

    Args:
        key, value: float32 [heads, tokens, head_size], as stored.
        weights: float32 [heads, num_features(head_size)].
        cos, sin: float32, see unrotated().
    """
    plain = unrotated(key, cos, sin)
    return (features(plain, value) @ weights[..., None]).squeeze(-1)


def choose(scores: torch.Tensor, count: int, sinks: int, recent: int) -> torch.Tensor:
    """Tokens that stay: int64 [heads, count], in order.

    Args:
        scores: float32 [heads, tokens].
        sinks: first tokens, which stay where they are and are not among those chosen.
        recent: last tokens, which always are, no more than count.
    """
    order = scores.clone()
    order[:, :sinks] = float("-inf")
    order[:, order.shape[1] - recent :] = float("inf")
    return order.topk(count, dim=1).indices.sort(dim=1).values
