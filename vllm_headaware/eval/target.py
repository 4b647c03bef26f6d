"""The part of a model that a KV policy is about: its layers of full causal attention.

Layers with a window of their own (Gemma) hold the same under every method. Their bytes are added to
all sides, so that no ratio is better than what a user would see.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.geometry import ModelGeometry, layer_windows, read_geometry
from vllm_headaware.profile.format import HeadProfile

FULL_DTYPE = "bfloat16"
"""How the full cache stores K and V: the least that serving without a KV policy takes."""


@dataclass(frozen=True)
class Target:
    """What contenders are made for.

    Attributes:
        geometry: of the layers of full attention alone; its kv_dtype is that of the full cache.
        profile: of the same layers.
        windows: of every layer of the model, in tokens; None where it has full attention.
    """

    geometry: ModelGeometry
    profile: HeadProfile
    windows: tuple[int | None, ...]

    def fixed_bytes(self, num_tokens: int) -> int:
        """Bytes that layers with a window of their own hold of a request."""
        tokens = sum(min(num_tokens, window) for window in self.windows if window is not None)
        return tokens * self.geometry.num_kv_heads * self.geometry.head_token_bytes


def read_target(model_dir: Path, profile: HeadProfile) -> Target:
    """The target in a model folder, without loading weights.

    Raises:
        HeadAwareError: no readable configuration, or no layer of full attention.
    """
    from transformers import AutoConfig

    geometry = read_geometry(model_dir, FULL_DTYPE)
    windows = tuple(layer_windows(AutoConfig.from_pretrained(model_dir)))
    full = [layer for layer, window in enumerate(windows) if window is None]
    if not full:
        raise HeadAwareError("the model has no layer of full attention: no KV policy is about it")
    scores = {name: [rows[layer] for layer in full] for name, rows in profile.scores.items()}
    return Target(
        dataclasses.replace(geometry, num_layers=len(full), own_windows=()),
        dataclasses.replace(
            profile,
            model=dataclasses.replace(profile.model, num_layers=len(full)),
            scores=scores,
        ),
        windows,
    )
