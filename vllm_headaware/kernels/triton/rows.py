"""Rows in the blocks of the Triton kernels: a head's share of a block holds the K rows of its
tokens, then their V rows, then their scales. Bytes of int4 hold channels i and i + half."""

from __future__ import annotations

import torch

from vllm_headaware.kernels.formats import FORMATS, RowFormat
from vllm_headaware.kernels.rows import Rows, by_block, by_head


def take(blocks: torch.Tensor, kv_format: str, head_size: int) -> Rows:
    """See rows.Take."""
    count, heads, tokens = blocks.shape[:3]
    kind, flat = FORMATS[kv_format], blocks.reshape(count, heads, -1)
    sizes = [row.row_bytes(head_size) - row.extra_bytes for row in (kind.key, kind.value)]
    if not kind.quantised:
        key, value = flat.unflatten(-1, (2, tokens, head_size)).unbind(2)
        return Rows(by_head(key), by_head(value), _no_scales(blocks, heads, count * tokens))
    raw = flat.view(torch.uint8)
    areas = raw.split([*(tokens * size for size in sizes), raw.shape[-1] - tokens * sum(sizes)], -1)
    rows = [
        by_head(_integers(area.unflatten(-1, (tokens, size)), row))
        for area, size, row in zip(areas, sizes, (kind.key, kind.value), strict=False)
    ]
    scales = areas[2].contiguous().view(torch.bfloat16).unflatten(-1, (-1, tokens))
    return Rows(rows[0], rows[1], by_head(scales.transpose(-1, -2)))


def put(rows: Rows, kv_format: str, blocks: torch.Tensor) -> None:
    """See rows.Put."""
    count = blocks.shape[0]
    kind = FORMATS[kv_format]
    parts = [by_block(x, count) for x in (rows.key, rows.value, rows.scales)]
    if not kind.quantised:
        whole = torch.stack(parts[:2], 2)
    else:
        packed = [_bytes(x, row) for x, row in zip(parts, (kind.key, kind.value), strict=False)]
        scales = parts[2].transpose(-1, -2).contiguous().view(torch.uint8)
        whole = torch.cat([x.flatten(2) for x in (*packed, scales)], -1).view(blocks.dtype)
    blocks.copy_(whole.reshape(blocks.shape))


def _integers(raw: torch.Tensor, row: RowFormat) -> torch.Tensor:
    if row.bits == 8:
        return raw ^ 128  # from two's complement
    return torch.cat([raw & 15, raw >> 4], -1)


def _bytes(integers: torch.Tensor, row: RowFormat) -> torch.Tensor:
    if row.bits == 8:
        return integers ^ 128
    low, high = integers.chunk(2, -1)
    return low | high << 4


def _no_scales(like: torch.Tensor, heads: int, tokens: int) -> torch.Tensor:
    return torch.empty(heads, tokens, 0, dtype=torch.bfloat16, device=like.device)
