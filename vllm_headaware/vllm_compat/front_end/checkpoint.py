"""A model folder's config.json, looked at before vLLM makes anything of it: what is wrong with it
is said in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_headaware.errors import HeadAwareError

COUNTS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
"""What has to be a whole number above 0 where a config has it at all."""
MOST = 2**31
AGAIN = "download the model again"


def refuse_broken_config(model: str) -> None:
    """Check the config.json of a local model folder; names of the hub are left to its client.

    Raises:
        HeadAwareError: it cannot be read, or says what no model can have.
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    path = folder / "config.json"
    try:
        whole: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HeadAwareError(f"{folder} has no config.json: not a model folder") from error
    except (OSError, ValueError, RecursionError) as error:
        detail = str(error).splitlines()[0]
        raise HeadAwareError(f"cannot read {path} ({detail}); {AGAIN}") from error
    if not isinstance(whole, dict):
        raise HeadAwareError(f"{path} holds no JSON object; {AGAIN}")
    kind = whole.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise HeadAwareError(f"{path} says model_type {kind!r}, not what kind of model; {AGAIN}")
    config = whole.get("text_config") or whole
    if not isinstance(config, dict):
        raise HeadAwareError(f"text_config in {path} is no JSON object; {AGAIN}")
    for name in COUNTS:
        value = config.get(name)
        if value is not None and (type(value) is not int or not 0 < value < MOST):
            raise HeadAwareError(
                f"{path} says {name} {value!r}, not a whole number above 0; {AGAIN}"
            )
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads and kv_heads and heads % kv_heads:
        raise HeadAwareError(
            f"{path} says {heads} query heads share {kv_heads} KV heads, which does not divide;"
            f" {AGAIN}"
        )
    layers, kinds = config.get("num_hidden_layers"), config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise HeadAwareError(f"{path} has layer_types that are not one for each layer; {AGAIN}")
