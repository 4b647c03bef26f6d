"""Piecewise CUDA graphs end where split attention begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

import vllm_headaware.attention.split  # noqa: F401
from vllm_headaware.vllm_compat.front_end.activate import split_graphs


def split(ops: list[str] | None) -> list[str] | None:
    config: Any = SimpleNamespace(splitting_ops=ops)
    split_graphs(config)
    split_graphs(config)
    return config.splitting_ops


def test_where_vllm_cuts_at_its_own_attention_it_cuts_at_ours() -> None:
    ops = split(["vllm::unified_attention_with_output"])
    assert ops == ["vllm::unified_attention_with_output", "vllm_headaware::split_attention"]


def test_a_graph_that_is_not_cut_stays_whole() -> None:
    assert split([]) == []
    assert split(None) is None


def test_the_operation_has_that_name() -> None:
    assert torch.ops.vllm_headaware.split_attention is not None
