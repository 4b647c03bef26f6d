"""Models with quantised weights are served by the profile of the model that they were made from.

Rounding weights leaves attention heads what they are. A parent's profile fits when layers and heads
have the same shape, and is found by the `base_model` that the child's card names or, where it names
none, by an equal tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.geometry import ModelGeometry, read_geometry
from vllm_headaware.profile.format import HeadProfile

TOKENIZER = "tokenizer"
"""In a profile's provenance: tokenizer_hash() of its model."""


def quantised_by(model_dir: Path) -> str | None:
    """How a model's weights are quantised, as its files name it; None where they are not."""
    config = _read_json(model_dir / "config.json")
    own: Any = config.get("quantization_config")
    if own is None:
        own = _read_json(model_dir / "hf_quant_config.json").get("quantization")
    if not isinstance(own, dict):
        return None
    return str(own.get("quant_method") or own.get("quant_algo") or "an unnamed method")


def require_parent(profile: HeadProfile, path: Path, model_dir: Path, digest: str) -> None:
    """Accept a profile of another model for one with quantised weights, and say so.

    Raises:
        HeadAwareError: the profile is neither this model's nor that of a possible parent.
    """
    if profile.model.hash == digest:
        return
    method = quantised_by(model_dir)
    if method is None or not same_shape(profile, _shape(model_dir)):
        profile.require_model(digest, path=path)
    _say(profile, path, f"{model_dir} has weights quantised by {method}")


def find_parent(model_dir: Path, files: Iterable[Path]) -> HeadProfile | None:
    """The profile of the parent of a model with quantised weights, among some files."""
    method = quantised_by(model_dir)
    if method is None:
        return None
    shape, base = _shape(model_dir), base_model(model_dir)
    tokenizer = tokenizer_hash(model_dir)
    for path in files:
        try:
            profile = HeadProfile.load(path)
        except HeadAwareError:
            continue
        if base is None:
            why, fits = "its tokenizer", tokenizer == profile.provenance.get(TOKENIZER, "")
        else:
            why, fits = f"its card's base_model {base}", profile.model.name == base
        if fits and same_shape(profile, shape):
            _say(profile, path, f"{model_dir} has weights quantised by {method}, found by {why}")
            return profile
    return None


def same_shape(profile: HeadProfile, shape: ModelGeometry) -> bool:
    """Whether a profile is of a model with layers and heads like these."""
    own = profile.model
    return (own.num_layers, own.num_kv_heads, own.num_query_heads, own.head_size) == (
        shape.num_layers,
        shape.num_kv_heads,
        shape.num_query_heads,
        shape.head_size,
    )


def base_model(model_dir: Path) -> str | None:
    """Name of the model that a model's card says it was made from, without its owner."""
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        card: Any = metadata_load(model_dir / "README.md")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    values = card.get("base_model") if isinstance(card, dict) else None
    first = values[0] if isinstance(values, list) and values else values
    return first.rstrip("/").rsplit("/", 1)[-1] if isinstance(first, str) and first else None


def tokenizer_hash(model_dir: Path) -> str:
    """sha256 of a model's tokenizer.json; empty where there is none."""
    try:
        text = (model_dir / "tokenizer.json").read_bytes()
    except OSError:
        return ""
    return "sha256:" + hashlib.sha256(text).hexdigest()


def _shape(model_dir: Path) -> ModelGeometry:
    return read_geometry(model_dir, "float32", 1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _say(profile: HeadProfile, path: Path, why: str) -> None:
    print(
        f"head profile {path} was measured on {profile.model.name}, the parent: {why}",
        file=sys.stderr,
        flush=True,
    )
