"""A policy whose windows hide something of short prompts, and such prompts, for tiny models."""

from __future__ import annotations

import random
from typing import Any

POLICY: dict[str, Any] = {
    "kv_policy": "headaware",
    "kv_retrieval_share": 0.3,
    "kv_induction_share": 0.2,
    "kv_sink": 20,
    "kv_window": 40,
    "kv_induction_window": 130,
    "kv_retrieval_dtype": "float32",
    "kv_induction_dtype": "float32",
    "kv_local_dtype": "float32",
}
"""Unquantised, so that tokens can be compared with stock vLLM and Hugging Face exactly."""
DRAFTS: dict[str, Any] = {
    "method": "ngram",
    "num_speculative_tokens": 5,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}
"""Speculative decoding, for vLLM's speculative_config."""
LENGTHS = (1, 7, 31, 32, 33, 59, 60, 61, 97, 128, 161, 200, 255, 310, 333, 401, 450)


def make_prompts(vocab_size: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    """Random prompts of awkward lengths; the first are shorter than sinks + window."""
    rng = random.Random(17)
    return [[rng.randrange(8, vocab_size) for _ in range(length)] for length in lengths]
