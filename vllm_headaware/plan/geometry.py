"""The numbers of a model that a plan depends on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.formats import FORMATS

MODEL_DTYPES = tuple(name for name, kv_format in FORMATS.items() if not kv_format.quantised)

ONE_MORE = ("cohere2",)
"""Model types whose layers see one token more in vLLM than their sliding_window says."""


@dataclass(frozen=True)
class ModelGeometry:
    """Attention geometry of a decoder, for the whole model (all tensor-parallel ranks).

    Attributes:
        own_windows: sliding window, in tokens, that each layer has by itself; None where it sees
            everything. Empty: no layer has one.
    """

    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_size: int
    kv_dtype: str
    max_model_len: int
    own_windows: tuple[int | None, ...] = ()

    @property
    def own_window(self) -> int | None:
        """The window of the layers that have one.

        Raises:
            HeadAwareError: they have different ones.
        """
        windows = {window for window in self.own_windows if window is not None}
        if len(windows) > 1:
            raise HeadAwareError(
                "layers of this model have sliding windows of different widths"
                f" ({', '.join(map(str, sorted(windows)))} tokens), which no KV policy covers; use"
                " --kv-policy full for it"
            )
        return next(iter(windows), None)

    @property
    def full_layers(self) -> list[int]:
        """Layers that see everything: those whose heads a policy deals to classes."""
        return [layer for layer in range(self.num_layers) if self.window_of(layer) is None]

    def window_of(self, layer: int) -> int | None:
        """The window that a layer has by itself."""
        return self.own_windows[layer] if self.own_windows else None

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


def layer_windows(config: Any) -> list[int | None]:
    """Window, in tokens, that each layer of a model has by itself; None where it sees everything.

    Args:
        config: a transformers configuration.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "num_hidden_layers", 1)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def served_windows(config: Any) -> tuple[int | None, ...]:
    """layer_windows as vLLM serves them; empty where no layer has one."""
    one_more = config.get_text_config().model_type in ONE_MORE
    windows = [w + one_more if w else None for w in layer_windows(config)]
    return tuple(windows) if any(windows) else ()


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
            own_windows=_own_windows(Path(model_dir)),
        )
    except KeyError as error:
        raise HeadAwareError(
            f"{path} has no {error}: not a decoder-only attention model this package knows"
        ) from error


def _own_windows(model_dir: Path) -> tuple[int | None, ...]:
    """Only transformers knows what a family's config leaves out."""
    from transformers import AutoConfig

    try:
        return served_windows(AutoConfig.from_pretrained(model_dir))
    except (OSError, ValueError, KeyError):  # no family that it knows
        return ()


def _kv_dtype(asked: str, config: dict) -> str:
    if asked == "auto":
        asked = config.get("dtype") or config.get("torch_dtype") or "float32"
    if asked not in MODEL_DTYPES:
        raise HeadAwareError(
            f"KV dtype {asked!r} is not supported; choose one of {', '.join(MODEL_DTYPES)}"
        )
    return asked
