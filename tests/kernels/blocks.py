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
    bits = FORMATS[kv_format].bits
    area = tokens * size * bits // 8
    scales = share[2 * area :].view(torch.bfloat16).float().view(-1, tokens)
    k = _lanes(share[:area], bits).view(tokens // LANES, size // DEEP, LANES, DEEP)
    k = k.permute(0, 2, 1, 3).reshape(tokens, size)
    v = _lanes(share[area : 2 * area], bits).view(tokens // DEEP, size // LANES, LANES, DEEP)
    v = v.permute(0, 3, 1, 2).reshape(tokens, size)
    if kv_format == "int8":
        k, v = k - 128, torch.where(v > 127, v - 256, v)
        low_k = low_v = torch.zeros(tokens)
    else:
        low_k, low_v = scales[2], scales[3]
    k = low_k[:, None] + k * scales[0][:, None]
    v = low_v[:, None] + v * scales[1][:, None]
    return k, v, scales[0], scales[1]


def _lanes(area: torch.Tensor, bits: int) -> torch.Tensor:
    """Stored integers, [.., 32 lanes, 4]."""
    unsigned = area.view(torch.uint8).to(torch.int32)
    if bits == 8:
        return unsigned.float()
    halves = unsigned.view(-1, 1, LANES // 2, DEEP)
    return torch.cat([halves & 15, halves >> 4], 1).float()
