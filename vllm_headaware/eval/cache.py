"""A Hugging Face KV cache that gives back what its KV formats would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.kernels.reference import stored


class StoredCache(DynamicCache):
    """Keys and values are rounded once, when they are written, as the engine's blocks round them.

    Args:
        formats: KV format of every `[layer][KV head]`, names of kernels/formats.py.
    """

    def __init__(self, formats: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.formats = formats

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write K and V [1, Hkv, T, D] of new tokens; returns those of all tokens so far."""
        formats = self.formats[layer_idx]
        kept = [FORMATS[name] for name in formats]
        key = _rounded(key_states, [kv_format.key.name for kv_format in kept])
        value = _rounded(value_states, [kv_format.value.name for kv_format in kept])
        return super().update(key, value, layer_idx, *args)

    def held(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [1, Hkv, T, D] of all tokens so far."""
        own: Any = self.layers[layer]
        return own.keys, own.values

    def copy_to(self, formats: Sequence[Sequence[str]]) -> StoredCache:
        """The same tokens in other formats, as if moved there; this cache is unchanged."""
        other = StoredCache(formats)
        for layer in range(len(self.layers)):
            key, value = self.held(layer)
            if formats[layer] == self.formats[layer]:  # as they lie, not rounded again
                DynamicCache.update(other, key.clone(), value.clone(), layer)
            else:
                other.update(key, value, layer)
        return other


def _rounded(states: torch.Tensor, formats: Sequence[str]) -> torch.Tensor:
    if len(set(formats)) == 1:
        return stored(states.float(), formats[0]).to(states.dtype)
    heads = [stored(states[:, h].float(), f) for h, f in enumerate(formats)]
    return torch.stack(heads, 1).to(states.dtype)
