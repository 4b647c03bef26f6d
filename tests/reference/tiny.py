"""Tiny random Llama models with a word tokenizer, made on the spot: seconds to serve, no download.

Weights are drawn wide enough that attention is peaked and greedy tokens depend on old context, so
that a wrong rule shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from testbench.words import SPECIAL, word_tokenizer

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a tiny model; query heads share KV heads in equal groups."""

    num_layers: int = 4
    num_query_heads: int = 8
    num_kv_heads: int = 4
    head_size: int = 32
    hidden_size: int = 128
    vocab_size: int = 211
    max_positions: int = 4096


TINY = TinyShape()
TINY_3_KV_HEADS = TinyShape(num_query_heads=9, num_kv_heads=3, head_size=64, hidden_size=144)
TINY_1_HEAD = TinyShape(num_layers=1, num_query_heads=1, num_kv_heads=1)


def make_tiny_model(folder: str | Path, shape: TinyShape = TINY, seed: int = 0) -> Path:
    """Write a model and its tokenizer into a folder; the same seed gives the same weights.

    Returns:
        The folder.
    """
    folder = Path(folder)
    config = LlamaConfig(
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_query_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        hidden_size=shape.hidden_size,
        intermediate_size=2 * shape.hidden_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
    )
    model = LlamaForCausalLM(config).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() < 2:
                continue
            fan_in = 1 if "embed" in name else weight.shape[1]
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            weight.normal_(0.0, gain * fan_in**-0.5, generator=generator)
    model.save_pretrained(folder)
    roles = ["user", "assistant", "system", ":"]
    tokenizer = word_tokenizer(roles, shape.vocab_size, chat_template=CHAT_TEMPLATE)
    tokenizer.save_pretrained(folder)
    return folder
