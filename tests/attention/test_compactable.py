"""Layers whose tokens can be chosen and moved; others are refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_headaware.attention.choice import NATIVE, STOCK
from vllm_headaware.attention.kernels import Kernels
from vllm_headaware.attention.split import _require_compactable
from vllm_headaware.errors import HeadAwareError

LAYER: Any = SimpleNamespace(layer_name="model.layers.7.self_attn.attn")
ROTARY = {"cos_sin_cache": torch.zeros(8, 64), "is_neox_style": True}


def test_rotated_by_halves() -> None:
    _require_compactable(LAYER, SimpleNamespace(**ROTARY), NATIVE)


@pytest.mark.parametrize(
    ("rotary", "kernels", "reason"),
    [
        (None, NATIVE, "in a way that token scores do not know"),
        (SimpleNamespace(**{**ROTARY, "is_neox_style": False}), NATIVE, "in a way"),
        (SimpleNamespace(**ROTARY, mrope_section=[16, 24, 24]), NATIVE, "in a way"),
        (SimpleNamespace(**ROTARY), STOCK, "vLLM's own op, which cannot move tokens"),
    ],
)
def test_what_is_not_is_refused(rotary: Any, kernels: Kernels, reason: str) -> None:
    with pytest.raises(HeadAwareError, match=reason) as refused:
        _require_compactable(LAYER, rotary, kernels)
    assert "model.layers.7" in str(refused.value)
    assert "remove --kv-retrieval-keep" in str(refused.value)
