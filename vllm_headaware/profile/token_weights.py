"""Weights of token scores as text: how they stand in a profile and reach workers."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from vllm_headaware.kernels.score_size import num_features

if TYPE_CHECKING:
    import torch

BYTES = 2
"""Of a weight, a float16."""


def pack(weights: torch.Tensor) -> str:
    """Text of weights [layers, KV heads, features]."""
    return base64.b64encode(weights.half().contiguous().numpy().tobytes()).decode()


def unpack(text: str, num_layers: int, num_kv_heads: int, head_size: int) -> torch.Tensor:
    """The inverse of pack: float32 [layers, KV heads, features].

    Raises:
        ValueError: they are not of such a model, or not numbers.
    """
    import torch

    return torch.from_numpy(read(text, num_layers, num_kv_heads, head_size).astype("float32"))


def read(text: str, num_layers: int, num_kv_heads: int, head_size: int) -> Any:
    """The same as a NumPy array of float16, without torch, which takes long to import."""
    import numpy

    shape = num_layers, num_kv_heads, num_features(head_size)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from error
    if len(raw) != BYTES * shape[0] * shape[1] * shape[2]:
        raise ValueError(f"{len(raw)} bytes are not {shape[0]} x {shape[1]} x {shape[2]} weights")
    weights = numpy.frombuffer(raw, numpy.float16).reshape(shape)
    if not numpy.isfinite(weights).all():
        raise ValueError("weights are not finite")
    return weights
