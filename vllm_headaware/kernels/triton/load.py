"""Keys and values out of a class's blocks, as they are stored."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from vllm_headaware.kernels.formats import FORMATS

LOG2E = tl.constexpr(1.4426950408889634)
ASSEMBLY = tl.constexpr(torch.version.hip is None and not triton.knobs.runtime.interpret)
"""Whether whole numbers become floats by PTX; elsewhere the compiler finds its own way."""
COUNTS = ("num_tokens", "num_requests")
"""Arguments that differ from step to step: no code is made for some of their values."""


@triton.constexpr_function
def element(values: tuple[Any, ...], index: int) -> Any:
    """An element of a tuple that is known when code is made."""
    return values[index]


@triton.constexpr_function
def key_format(kind: str) -> str:
    """How keys of a KV format are stored, a name of formats.ROW_FORMATS."""
    return FORMATS[kind].key.name


@triton.constexpr_function
def value_format(kind: str) -> str:
    """How its values are."""
    return FORMATS[kind].value.name


@triton.constexpr_function
def quantised(kind: str) -> bool:
    """Whether its keys meet rounded queries."""
    return FORMATS[kind].quantised


@triton.constexpr_function
def row_width(row_format: str, size: int) -> int:
    """Elements that a row takes where it is stored: int4 puts two in one."""
    return size // 2 if row_format == "int4" else size


@triton.constexpr_function
def parts(row_format: str) -> int:
    """In how many parts a row is multiplied: elements that 16 bits hold, if they are whole."""
    return 4 if row_format == "int4" else 2 if row_format == "int8" else 1


@triton.constexpr_function
def part_width(row_format: str, size: int) -> int:
    """Columns of a part, a power of two."""
    columns = size // (4 if row_format == "int4" else 2 if row_format == "int8" else 1)
    return max(1 << (columns - 1).bit_length(), 16)


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
def channels(column, part: tl.constexpr, ROW: tl.constexpr, SIZE: tl.constexpr):
    """Elements of a row that the columns of a part are."""
    if ROW == "int4":
        channel = 2 * column + part // 2 + (part % 2) * (SIZE // 2)
    else:
        channel = parts(ROW) * column + part
    return channel


@triton.constexpr_function
def _packed_code(row_format: str, part: int, dtype: str) -> str:
    """PTX that makes two 16-bit floats of a part of two words.

    Bits become the mantissa of a number whose unit is 1 there, which is then taken away.
    """
    bits, count = (4, "0x000F000F") if row_format == "int4" else (8, "0x007F007F")
    shift = f"shr.b32 t, $1, {bits * part};" if part else "mov.b32 t, $1;"
    if dtype == "bfloat16" and row_format == "int4":
        # 128 + n, less 136.
        body = f"lop3.b32 t, t, {count}, 0x43004300, 0xEA; fma.rn.bf16x2 $0, t, o, d;"
    elif dtype == "bfloat16":
        # 128 + the lower seven bits, less 128, or 256 where the sign bit is set.
        body = (
            f"lop3.b32 s, t, 0x00800080, 0x43004300, 0xEA; lop3.b32 t, t, {count}, 0x43004300,"
            " 0xEA; fma.rn.bf16x2 $0, s, m, t;"
        )
    elif row_format == "int4":
        # 1024 + n, less 1032.
        body = (
            f"lop3.b32 t, t, {count}, 0x64006400, 0xEA; mov.b32 s, 0x64086408; sub.f16x2 $0, t, s;"
        )
    else:
        # 1024 + 128 + n, less 1152.
        body = (
            "lop3.b32 t, t, 0x00FF00FF, 0x64806480, 0x6A; mov.b32 s, 0x64806480;"
            " sub.f16x2 $0, t, s;"
        )
    constants = "mov.b32 o, 0x3F803F80; mov.b32 m, 0xBF80BF80; mov.b32 d, 0xC308C308;"
    return f"{{ .reg .b32 t, s, o, m, d; {constants} {shift} {body} }}"


@triton.jit
def unpacked(halves, part: tl.constexpr, ROW: tl.constexpr, dtype: tl.constexpr):
    """A part of rows, of which each element is 16 bits, in dtype; int4 as what it is above 8."""
    BITS: tl.constexpr = 4 if ROW == "int4" else 8
    words = halves.to(tl.int16, bitcast=True)
    if ASSEMBLY and dtype == tl.bfloat16:
        values = tl.inline_asm_elementwise(
            _packed_code(ROW, part, "bfloat16"), "=r,r", [words], tl.bfloat16, True, 2
        )
    elif ASSEMBLY and dtype == tl.float16:
        values = tl.inline_asm_elementwise(
            _packed_code(ROW, part, "float16"), "=r,r", [words], tl.float16, True, 2
        )
    elif ROW == "int4":
        values = (((words >> (BITS * part)) & 15) - 8).to(dtype)
    else:
        values = (words >> (BITS * part)).to(tl.int8).to(dtype)
    return values


@triton.jit
def tile(data, rows, WIDE: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr):
    """[rows, WIDE] of rows with WIDTH elements, or TURNED over as it is loaded; columns beyond are
    0."""
    column = tl.arange(0, WIDE)
    if TURNED:
        rows, column = rows[None, :], column[:, None]
    else:
        rows, column = rows[:, None], column[None, :]
    mask = None if WIDE == WIDTH else column < WIDTH
    return tl.load(data + rows + column, mask=mask, other=None if WIDE == WIDTH else 0)


@triton.jit
def rows_of(data, rows, there, WIDE: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr):
    """The same; rows that are not there are 0."""
    column = tl.arange(0, WIDE)
    if TURNED:
        rows, there, column = rows[None, :], there[None, :], column[:, None]
    else:
        rows, there, column = rows[:, None], there[:, None], column[None, :]
    if WIDE != WIDTH:
        there = there & (column < WIDTH)
    return tl.load(data + rows + column, mask=there, other=0)


@triton.jit
def capped(logits, CAP: tl.constexpr):
    """Soft cap: CAP x tanh(logits / CAP); 0 caps nothing."""
    if CAP > 0:
        logits = CAP * (2 * tl.sigmoid(2 * logits / CAP) - 1)
    return logits
