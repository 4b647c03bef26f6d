"""How many numbers a token's score is made of. No torch."""

from __future__ import annotations


def num_features(head_size: int) -> int:
    """Of kernels/token_scores.py: key and value, their squares, and lengths of the key's pairs."""
    return 4 * head_size + head_size // 2
