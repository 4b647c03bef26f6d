"""The Hadamard rotation on matrix units: signs are exact in bfloat16, and a float32 is the sum of a
few bfloat16 numbers, so products lose nothing that matters."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotated(x, signs, acc, PARTS: tl.constexpr):
    """acc + x @ signs in float32.

    Args:
        x: float [rows, columns].
        signs: bfloat16 [columns, any] of +1, -1 and 0.
        PARTS: bfloat16 numbers that x is the sum of: 1 for bfloat16, 2 for float16 and for results
            that become 16 bits wide, 3 for float32.
    """
    rest = x.to(tl.float32)
    for _ in tl.static_range(PARTS):
        part = rest.to(tl.bfloat16)
        acc = tl.dot(part, signs, acc=acc)
        rest = rest - part.to(tl.float32)
    return acc
