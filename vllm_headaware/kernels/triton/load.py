"""Keys and values out of a class's blocks, as they are stored."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.formats import FORMATS

LOG2E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def key_format(kind: str) -> str:
    """How keys of a KV format are stored, a name of formats.ROW_FORMATS."""
    return FORMATS[kind].key.name


@triton.constexpr_function
def value_format(kind: str) -> str:
    """How its values are."""
    return FORMATS[kind].value.name


@triton.constexpr_function
def row_width(row_format: str, size: int) -> int:
    """Elements that a row takes where it is stored: int4 puts two in one."""
    return size // 2 if row_format == "int4" else size


@triton.jit
def share_of(token, there, table, block_stride, block):
    """Where the blocks of tokens begin (elements), and the places of the tokens in them.

    Args:
        token: int32, places in the request.
        there: which may be looked up.
        table: the request's row of the block table.

    Returns:
        int64 and int32, shape of token.
    """
    number = tl.load(table + token // block, mask=there, other=0).to(tl.int64)
    return number * block_stride, token % block


@triton.jit
def tile(data, rows, there, WIDE: tl.constexpr, WIDTH: tl.constexpr):
    """[tokens, WIDE] of rows with WIDTH elements; what is not there is 0."""
    column = tl.arange(0, WIDE)
    mask = there[:, None]
    if WIDE != WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(data + rows[:, None] + column[None, :], mask=mask, other=0)


@triton.jit
def capped(logits, CAP: tl.constexpr):
    """Soft cap: CAP x tanh(logits / CAP); 0 caps nothing."""
    if CAP > 0:
        logits = CAP * (2 * tl.sigmoid(2 * logits / CAP) - 1)
    return logits
