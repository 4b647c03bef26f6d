"""Rows taken out of blocks are what was written there, and put back they are the same bytes."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests.kernels.test_cpu_attention import OWNERS, Batch
from vllm_headaware.kernels.cpu import rows as cpu
from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.kernels.score_size import num_features
from vllm_headaware.kernels.token_scores import choose, features, scores, unrotated
from vllm_headaware.kernels.triton import rows as triton

REQUEST = 3


@pytest.mark.parametrize("kv_format", FORMATS)
def test_the_cpu_kernels_rows(kv_format: str) -> None:
    batch = Batch(kv_format, block=96)
    batch.serve()
    length = batch.lengths[REQUEST]
    expected = batch.stored_rows(REQUEST)
    for own, cache, table in zip(OWNERS, batch.caches, batch.tables, strict=True):
        blocks = cache[table[REQUEST, : -(-length // batch.block)]]
        rows = cpu.take(blocks.view(_dtype(kv_format)), kv_format, batch.head_size)
        found = rows.numbers(kv_format)
        for x, rotated in zip(found, expected, strict=True):
            there = rotated[:, list(own)].double() @ batch.turn.T
            error = (x[:, :length].transpose(0, 1) - there).abs().max()
            assert error < 1e-5


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("kernels", [cpu, triton])
def test_there_and_back(kernels: ModuleType, kv_format: str) -> None:
    """Any integers and numbers at all, tokens moved from one block to another and back."""
    size, blocks, heads, tokens = 96, 3, 2, 64
    kind = FORMATS[kv_format]
    width = kind.token_bytes(size)
    raw = torch.randint(-128, 128, (blocks, heads, tokens, width), dtype=torch.int8)
    numbers = kind.key.extra_bytes + kind.value.extra_bytes if kind.quantised else width
    raw.view(blocks, heads, -1)[..., -numbers * tokens :] &= ~64  # no number is NaN
    before = raw.view(_dtype(kv_format))
    rows = kernels.take(before, kv_format, size)
    order = torch.stack([torch.randperm(blocks * tokens) for _ in range(heads)])
    moved, again = torch.zeros_like(raw).view(before.dtype), torch.zeros_like(raw)
    kernels.put(rows.of(order), kv_format, moved)
    assert not torch.equal(moved.view(torch.int8), raw)
    rows = kernels.take(moved, kv_format, size).of(order.argsort(1))
    kernels.put(rows, kv_format, again.view(before.dtype))
    assert torch.equal(again, raw)


def test_scores_see_no_position() -> None:
    """A key rotated by wherever it stands scores as it would unrotated."""
    torch.manual_seed(0)
    key, value = torch.randn(2, 2, 5000, 64)
    weights = torch.randn(2, num_features(64))
    angles = torch.arange(5000)[:, None] / 10.0 ** torch.linspace(0, 4, 24)
    cos, sin = angles.cos(), angles.sin()
    rotated = unrotated(key, cos, -sin)
    assert (rotated - key).abs().max() > 1
    expected = (features(key, value) * weights[:, None]).sum(-1)
    assert (scores(rotated, value, weights, cos, sin) - expected).abs().max() < 1e-2


def test_the_best_tokens_stay_in_order() -> None:
    found = choose(torch.tensor([[9.0, 1, 5, 3, 7, 2, 0], [9, 9, 8, 7, 6, 5, 4]]), 4, 1, 2)
    assert found.tolist() == [[2, 4, 5, 6], [1, 2, 5, 6]]


def _dtype(kv_format: str) -> torch.dtype:
    quantised = FORMATS[kv_format].quantised
    return torch.int8 if quantised else getattr(torch, kv_format)
