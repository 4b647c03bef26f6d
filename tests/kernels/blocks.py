"""Reads the blocks that the CPU kernels wrote, from the description in formats.h alone."""

from __future__ import annotations

import torch

from vllm_headaware.kernels.formats import FORMATS

LANES, DEEP = 32, 4


def read_block(
    share: torch.Tensor, kv_format: str, block_tokens: int, head_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """K, V and their scales out of one head's share of one block.

    Args:
        share: int8 [bytes], contiguous.

    Returns:
        K and V as float32 [block_tokens, head_size] as they are stored (rotated if quantised), and
        scale of each row as float32 [block_tokens] (0 for unquantised formats).
    """
    tokens, size = block_tokens, head_size
    if not FORMATS[kv_format].quantised:
        elements = share.view(getattr(torch, kv_format)).float()
        k, v = elements.split(tokens * size)
        k = k.view(tokens // LANES, size, LANES).transpose(1, 2).reshape(tokens, size)
        none = torch.zeros(tokens)
        return k, v.view(tokens, size), none, none
    key, value = FORMATS[kv_format].key, FORMATS[kv_format].value
    area = tokens * size * key.bits // 8
    end = area + tokens * size * value.bits // 8
    scale_k, scale_v, *lows = share[end:].view(torch.bfloat16).float().view(-1, tokens)
    k = _lanes(share[:area], key.bits).view(tokens // LANES, size // DEEP, LANES, DEEP)
    k = k.permute(0, 2, 1, 3).reshape(tokens, size)
    v = _lanes(share[area:end], value.bits).view(tokens // DEEP, size // LANES, LANES, DEEP)
    v = v.permute(0, 3, 1, 2).reshape(tokens, size)
    low_k = lows.pop(0) if key.name == "int4" else torch.full((tokens,), -128) * scale_k
    k = low_k[:, None] + k * scale_k[:, None]
    if value.name == "int8":
        v = torch.where(v > 127, v - 256, v)
    low_v = lows.pop(0) if value.name == "int4" else torch.zeros(tokens)
    v = low_v[:, None] + v * scale_v[:, None]
    return k, v, scale_k, scale_v


def _lanes(area: torch.Tensor, bits: int) -> torch.Tensor:
    """Stored integers, [.., 32 lanes, 4]."""
    unsigned = area.view(torch.uint8).to(torch.int32)
    if bits == 8:
        return unsigned.float()
    halves = unsigned.view(-1, 1, LANES // 2, DEEP)
    return torch.cat([halves & 15, halves >> 4], 1).float()
