"""The numbers of a model that a plan depends on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.formats import FORMATS

MODEL_DTYPES = tuple(name for name, kv_format in FORMATS.items() if not kv_format.quantised)


@dataclass(frozen=True)
class ModelGeometry:
    """Attention geometry of a decoder, for the whole model (all tensor-parallel ranks)."""

    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_size: int
    kv_dtype: str
    max_model_len: int

    @property
    def head_token_bytes(self) -> int:
        """Bytes of K and V of one token in one KV head, in the model's own dtype."""
        return FORMATS[self.kv_dtype].token_bytes(self.head_size)

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.num_query_heads // self.num_kv_heads

    @property
    def num_heads_total(self) -> int:
        """KV heads of all layers together."""
        return self.num_layers * self.num_kv_heads


def read_geometry(
    model_dir: Path, kv_dtype: str = "auto", max_model_len: int | None = None
) -> ModelGeometry:
    """Read the geometry from a model folder's config.json, without loading weights.

    Raises:
        HeadAwareError: no readable config.json, or one without attention geometry.
    """
    path = Path(model_dir) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeadAwareError(f"cannot read the model's {path}: {error}") from error
    config = config.get("text_config", config)
    try:
        num_query_heads = config["num_attention_heads"]
        return ModelGeometry(
            num_layers=config["num_hidden_layers"],
            num_query_heads=num_query_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_query_heads,
            head_size=config.get("head_dim") or config["hidden_size"] // num_query_heads,
            kv_dtype=_kv_dtype(kv_dtype, config),
            max_model_len=max_model_len or config["max_position_embeddings"],
        )
    except KeyError as error:
        raise HeadAwareError(
            f"{path} has no {error}: not a decoder-only attention model this package knows"
        ) from error


def _kv_dtype(asked: str, config: dict) -> str:
    if asked == "auto":
        asked = config.get("dtype") or config.get("torch_dtype") or "float32"
    if asked not in MODEL_DTYPES:
        raise HeadAwareError(
            f"KV dtype {asked!r} is not supported; choose one of {', '.join(MODEL_DTYPES)}"
        )
    return asked
