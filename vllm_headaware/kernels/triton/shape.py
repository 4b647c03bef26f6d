"""What the launches of a layer are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from vllm_headaware.kernels.formats import FORMATS

TL_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Shape:
    """What all launches of a layer are compiled for; equal for all layers of a model."""

    kinds: tuple[str, ...]
    size: int
    group: int
    io: torch.dtype
    soft_cap: float = 0.0
    has_sinks: bool = False

    @property
    def padded(self) -> int:
        return triton.next_power_of_2(self.size)

    @property
    def half_wide(self) -> int:
        """Columns of a tile of int4 rows."""
        return max(triton.next_power_of_2(self.size // 2), 16)

    @property
    def wide_group(self) -> int:
        """Rows of a tile that a query takes."""
        return triton.next_power_of_2(self.group)

    @property
    def rows(self) -> int:
        """Rows of a tile of queries while a prompt is read."""
        return 128 if self.size <= 128 and self.io != torch.float32 else 32

    @property
    def tile_tokens(self) -> int:
        """Keys and values of a tile while a prompt is read."""
        whole = all(FORMATS[kind].value.name == "int8" for kind in self.kinds)
        return 64 if self.rows == 128 and whole else 32

    @property
    def warps(self) -> int:
        """Warps of a program while a prompt is read."""
        return 8 if self.rows == 128 or self.size > 128 else 4

    @property
    def decode_rows(self) -> int:
        """Query heads of a tile while answers are made."""
        return max(self.wide_group, 8)

    @property
    def decode_tokens(self) -> int:
        """Keys and values of a tile while answers are made."""
        return 64 if self.size <= 128 else 32

    @property
    def decode_stages(self) -> int:
        """Tiles under way at once while answers are made: one more than are met. Programs are many
        and small, so that they wait for each other's memory."""
        return 2

    @property
    def decode_warps(self) -> int:
        """Warps of a program while answers are made."""
        return 2

    @property
    def decode_registers(self) -> int | None:
        """Most registers of a thread then, so that many programs fit; None: as many as it takes."""
        small = all(FORMATS[kind].value.name == "int4" for kind in self.kinds)
        return 128 if small and self.size <= 128 else None

    @property
    def queries(self) -> int:
        """Queries of a tile."""
        return self.rows // self.wide_group

    @property
    def distinct(self) -> tuple[str, ...]:
        """KV formats that there are: code is made for each."""
        return tuple(dict.fromkeys(self.kinds))

    @property
    def quantised(self) -> bool:
        """Whether any class meets rounded queries."""
        return any(FORMATS[kind].quantised for kind in self.kinds)

    @property
    def computes(self) -> tuple[Any, ...]:
        """Dtype of products, of each format."""

        def of(kind: str) -> Any:
            own = FORMATS[kind].quantised or getattr(torch, kind) == self.io
            return TL_DTYPES[self.io if own else torch.float32]

        return tuple(map(of, self.distinct))

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple("ieee" if c is tl.float32 else "tf32" for c in self.computes)

    @property
    def merge_precision(self) -> str:
        """How partial results are multiplied by their weights."""
        return "ieee" if self.io == torch.float32 else "tf32x3"

    @property
    def parts_in(self) -> int:
        """bfloat16 numbers that an element of a query, key or value is the sum of."""
        return {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}[self.io]

    @property
    def parts_out(self) -> int:
        """The same of results, which lose what io_dtype cannot hold."""
        return 3 if self.io == torch.float32 else 2
