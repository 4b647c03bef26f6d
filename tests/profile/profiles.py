"""Head profiles and tiny models that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vllm_headaware.profile.format import SCORES, HeadProfile, ProfiledModel
from vllm_headaware.profile.questions import Question

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
    # Its middle layer has full attention; the others see 11 tokens.
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 11,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "layer_types": ["full_attention"] * 3,
    },
}
"""What tells families apart, beside the sizes that make_model gives all of them."""

HASH = "sha256:" + "5" * 64


def make_profile(layers: int = 3, heads: int = 2, digest: str = HASH) -> HeadProfile:
    """Distinct scores that grow with layer and head."""
    matrix = [[(y * heads + h + 1) / 64 for h in range(heads)] for y in range(layers)]
    return HeadProfile(
        model=ProfiledModel("tiny", digest, layers, heads, 3 * heads, 16),
        scores=dict.fromkeys(SCORES, matrix),
        method={"sink": 4, "window": 8, "samples": 2, "lengths": [97], "seed": 0},
        agreement={"split_half_spearman": {"gate": 0.9}},
        ablation={
            "bound": 0.05,
            "samples": 2,
            "share": 0.5,
            "curve": [[0.0, 0.75], [0.5, 0.03], [1.0, 0.0]],
        },
        provenance={"seconds": 1.5},
    )


def make_question(input_ids: torch.Tensor, answer: int, needle: tuple[int, ...] = ()) -> Question:
    """Its last `answer` tokens are the right answer."""
    return Question(input_ids, answer, needle, is_far=True, weight=1.0)


def make_model(family: str, seed: int = 0) -> Any:
    """Three layers of 6 query heads and 2 KV heads of size 16, peaked attention, no gradients."""
    sizes: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "max_position_embeddings": 512,
    }
    sizes |= FAMILIES[family]
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 1.0 if "embed" in name else 1.5 * weight.shape[1] ** -0.5)
    return model.double().eval().requires_grad_(False)
