"""Tiny random models of the families that vLLM and transformers both have.

All have the sizes of SIZES, so that one profile and one set of prompts fits them; what makes a
family itself is its own options. Weights are drawn wide enough that greedy tokens depend on old
context.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 256,
    "vocab_size": 211,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
SLIDING_WINDOW = 48
"""No multiple of a block: a window that is rounded shows."""
EVERY_OTHER = ["sliding_attention", "full_attention"] * 2
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
GAIN = 1.6

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"model_type": "llama"},
    "Mistral": {"model_type": "mistral", "sliding_window": None},
    "Mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2": {"model_type": "qwen2"},
    "Qwen3": {"model_type": "qwen3"},
    "Qwen2-MoE": {"model_type": "qwen2_moe", **EXPERTS, "shared_expert_intermediate_size": 64},
    "Qwen3-MoE": {"model_type": "qwen3_moe", **EXPERTS, "norm_topk_prob": True},
    "Phi-3": {"model_type": "phi3", "sliding_window": None},
    "Gemma": {"model_type": "gemma", "tie_word_embeddings": True},
    "Gemma-2": {
        "model_type": "gemma2",
        "sliding_window": SLIDING_WINDOW,
        "layer_types": EVERY_OTHER,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 4.0,
        "tie_word_embeddings": True,
    },
    "Gemma-3": {
        "model_type": "gemma3_text",
        "sliding_window": SLIDING_WINDOW,
        "layer_types": EVERY_OTHER,
        "query_pre_attn_scalar": 32,
        "tie_word_embeddings": True,
    },
    "gpt-oss": {
        "model_type": "gpt_oss",
        "sliding_window": SLIDING_WINDOW,
        "layer_types": EVERY_OTHER,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "Granite": {"model_type": "granite", "attention_multiplier": 0.2},
    "Cohere": {"model_type": "cohere", "tie_word_embeddings": True},
    "Cohere2": {
        "model_type": "cohere2",
        "sliding_window": SLIDING_WINDOW,
        "layer_types": EVERY_OTHER,
        "tie_word_embeddings": True,
    },
    "GLM-4": {"model_type": "glm4"},
    "GLM-4-MoE": {
        "model_type": "glm4_moe",
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
    },
    "Olmo2": {"model_type": "olmo2"},
    "Olmo3": {
        "model_type": "olmo3",
        "sliding_window": SLIDING_WINDOW,
        "layer_types": EVERY_OTHER,
    },
    "StableLM": {"model_type": "stablelm", "use_qkv_bias": True},
    "Starcoder2": {"model_type": "starcoder2", "sliding_window": None},
    "Exaone-4": {
        "model_type": "exaone4",
        "sliding_window": SLIDING_WINDOW,
        "sliding_window_pattern": "LG",
        "layer_types": EVERY_OTHER,
    },
    "SmolLM3": {"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0]},
}
"""transformers' options of each family that is served, besides SIZES."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Mistral with windows everywhere": (
        {"model_type": "mistral", "sliding_window": SLIDING_WINDOW},
        "every layer of this model has a sliding window",
    ),
    "DeepSeek-V2 (MLA)": (
        {
            "model_type": "deepseek_v2",
            "kv_lora_rank": 32,
            "q_lora_rank": None,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "n_routed_experts": 4,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 4,
        },
        "multi-head latent attention",
    ),
    "Mamba": ({"model_type": "mamba", "state_size": 8}, "attention-free"),
    "Bloom (ALiBi)": ({"model_type": "bloom", "n_layer": 4, "n_head": 8}, "ALiBi"),
}
"""Families that are not, and part of the reason that is given."""


def make_family_model(folder: Path, options: dict[str, Any], like: Path | None = None) -> Path:
    """A random model of a family.

    Args:
        options: of transformers' configuration; model_type says which.
        like: a model folder whose tokenizer it gets; None: it has none.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {**SIZES, **options}
    shape["hidden_size"] = shape["head_dim"] * shape["num_attention_heads"]
    config = AutoConfig.for_model(**shape)
    torch.manual_seed(5)
    model: Any = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                # Where embeddings are the output's weights too, small ones keep it from saying
                # what came in.
                embedding = 0.01 if shape["tie_word_embeddings"] else 1.0
                gain = embedding if "embed" in name else GAIN * weight.shape[-1] ** -0.5
                weight.normal_(0.0, gain)
            elif "sinks" in name:
                weight.normal_(0.0, 2.0)
    model.save_pretrained(folder)
    for path in like.glob("*token*") if like else ():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    # What vLLM and profiles read, though some families have other names for it.
    sizes = {name: shape[name] for name in SIZES if name.startswith(("num_", "head_dim"))}
    path.write_text(json.dumps({**sizes, **written}), encoding="utf-8")
    return folder
