"""Rows in the blocks of the CPU kernels; how elements lie there is told in formats.h."""

from __future__ import annotations

import torch

from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.kernels.rows import Rows, by_block, by_head

LANES, DEEP = 32, 4


def take(blocks: torch.Tensor, kv_format: str, head_size: int) -> Rows:
    """See rows.Take."""
    count, heads, tokens = blocks.shape[:3]
    kind, flat = FORMATS[kv_format], blocks.reshape(count, heads, -1)
    if not kind.quantised:
        key, value = flat.split(tokens * head_size, -1)
        key = key.unflatten(-1, (tokens // LANES, head_size, LANES)).transpose(-1, -2).flatten(2, 3)
        none = torch.empty(heads, count * tokens, 0, dtype=torch.bfloat16)
        return Rows(by_head(key), by_head(value.unflatten(-1, (tokens, head_size))), none)
    raw = flat.view(torch.uint8)
    areas = [tokens * head_size * row.bits // 8 for row in (kind.key, kind.value)]
    key, value, scales = raw.split([*areas, raw.shape[-1] - sum(areas)], -1)
    # A quad of keys is 32 tokens of 4 channels, one of values 32 channels of 4 tokens.
    key = _lanes(key, kind.key.bits).unflatten(2, (tokens // LANES, head_size // DEEP))
    key = key.transpose(3, 4).flatten(4).flatten(2, 3)
    value = _lanes(value, kind.value.bits).unflatten(2, (tokens // DEEP, head_size // LANES))
    value = value.permute(0, 1, 2, 5, 3, 4).flatten(4).flatten(2, 3)
    if kind.value.bits == 8:
        value = value ^ 128  # from two's complement
    scales = scales.contiguous().view(torch.bfloat16).unflatten(-1, (-1, tokens))
    return Rows(by_head(key), by_head(value), by_head(scales.transpose(-1, -2)))


def put(rows: Rows, kv_format: str, blocks: torch.Tensor) -> None:
    """See rows.Put."""
    count, tokens = blocks.shape[0], blocks.shape[2]
    kind = FORMATS[kv_format]
    key, value, scales = (by_block(x, count) for x in (rows.key, rows.value, rows.scales))
    size = key.shape[-1]
    if not kind.quantised:
        key = key.unflatten(2, (tokens // LANES, LANES)).transpose(-1, -2)
        whole = torch.cat([key.flatten(2), value.flatten(2)], -1)
    else:
        key = key.unflatten(2, (tokens // LANES, LANES)).unflatten(-1, (size // DEEP, DEEP))
        key = key.transpose(3, 4).flatten(2, 3)
        if kind.value.bits == 8:
            value = value ^ 128
        value = value.unflatten(2, (tokens // DEEP, DEEP)).unflatten(-1, (size // LANES, LANES))
        value = value.permute(0, 1, 2, 4, 5, 3).flatten(2, 3)
        parts = [_quads(key, kind.key.bits), _quads(value, kind.value.bits)]
        parts.append(scales.transpose(-1, -2).contiguous().view(torch.uint8).flatten(2))
        whole = torch.cat(parts, -1).view(blocks.dtype)
    blocks.copy_(whole.reshape(blocks.shape))


def _lanes(area: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., quads, 32, 4] of the bytes of an area; lanes i and i + 16 of 4 bits share them."""
    if bits == 8:
        return area.unflatten(-1, (-1, LANES, DEEP))
    halves = area.unflatten(-1, (-1, LANES // 2, DEEP))
    return torch.cat([halves & 15, halves >> 4], -2)


def _quads(lanes: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of _lanes."""
    if bits == 4:
        low, high = lanes.chunk(2, -2)
        lanes = low | high << 4
    return lanes.flatten(2)
