"""What a profile says about its model and its making."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from vllm_headaware import __version__
from vllm_headaware.profile.format import ProfiledModel
from vllm_headaware.profile.model_hash import model_hash
from vllm_headaware.profile.parents import TOKENIZER, tokenizer_hash


def describe_model(folder: Path, config: Any) -> ProfiledModel:
    """The model in a folder, by its hash and shape.

    Args:
        config: its transformers configuration, of the language model.
    """
    query_heads, kv_heads, head_size = head_shape(config)
    return ProfiledModel(
        name=folder.resolve().name,
        hash=model_hash(folder),
        num_layers=config.num_hidden_layers,
        num_kv_heads=kv_heads,
        num_query_heads=query_heads,
        head_size=head_size,
    )


def head_shape(config: Any) -> tuple[int, int, int]:
    """Query heads, KV heads and their size, by a transformers configuration of a language model."""
    heads = config.num_attention_heads
    return (
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def provenance(folder: Path, started: float, device: str) -> dict[str, Any]:
    """When, how long and with what.

    Args:
        started: by time.monotonic().
    """
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "device": device,
        TOKENIZER: tokenizer_hash(folder),
        "vllm_headaware": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def rounded(scores: torch.Tensor) -> list[list[float]]:
    """Scores [layers, KV heads] as a profile holds them."""
    return [[float(f"{score:.6g}") for score in row] for row in scores.tolist()]
