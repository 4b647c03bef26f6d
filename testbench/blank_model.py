"""A model folder without weights: a config for an engine, and a profile for a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_blank_model(
    folder: Path,
    longest: int,
    *,
    layers: int = 32,
    query_heads: int = 32,
    kv_heads: int = 8,
    head_size: int = 128,
    hidden_size: int = 4096,
    intermediate_size: int = 14336,
    **_: Any,
) -> None:
    """A Llama, of Llama-3.1-8B's geometry by default, weights that nobody reads, and a profile:
    every fourth KV head is retrieval.

    Args:
        longest: tokens of its longest request.
    """
    import torch
    from safetensors.torch import save_file

    from vllm_headaware.profile.format import SCORES, HeadProfile, ProfiledModel
    from vllm_headaware.profile.locate import FILE_NAME
    from vllm_headaware.profile.model_hash import model_hash

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": query_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "vocab_size": 32000,
        "max_position_embeddings": longest,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    rows = [[float((head + layer) % 4 == 0) for head in range(kv_heads)] for layer in range(layers)]
    profile = HeadProfile(
        model=ProfiledModel(
            name="no weights",
            hash=model_hash(folder),
            num_layers=layers,
            num_kv_heads=kv_heads,
            num_query_heads=query_heads,
            head_size=head_size,
        ),
        scores=dict.fromkeys(SCORES, rows),
    )
    profile.save(folder / FILE_NAME)
