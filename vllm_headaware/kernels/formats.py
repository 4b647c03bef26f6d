"""KV formats: how a head class stores K and V, and the bytes that takes. No torch.

Quantised rows keep, besides the integers, one scale per token and head (bfloat16), and int4 a
lowest value as well; all of it lies in the block and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowFormat:
    """One way to store the K or the V of a token of a KV head.

    Attributes:
        name: for unquantised formats the torch dtype's name.
        bits: of one element.
        extra_bytes: of scale and lowest value.
    """

    name: str
    bits: int
    extra_bytes: int = 0

    def row_bytes(self, head_size: int) -> int:
        """Bytes of one token's, scales included."""
        return head_size * self.bits // 8 + self.extra_bytes


@dataclass(frozen=True)
class KVFormat:
    """One way to store the K and V of a KV head; quantised are both or neither.

    Attributes:
        name: as in --kv-retrieval-dtype.
    """

    name: str
    key: RowFormat
    value: RowFormat

    @property
    def quantised(self) -> bool:
        return self.key.extra_bytes > 0

    def token_bytes(self, head_size: int) -> int:
        """Bytes of the K and V of one token of one KV head."""
        return self.key.row_bytes(head_size) + self.value.row_bytes(head_size)


INT8, INT4 = RowFormat("int8", 8, extra_bytes=2), RowFormat("int4", 4, extra_bytes=4)
ROW_FORMATS = (
    RowFormat("float32", 32),
    RowFormat("bfloat16", 16),
    RowFormat("float16", 16),
    INT8,
    INT4,
)
FORMATS = {
    **{row.name: KVFormat(row.name, row, row) for row in ROW_FORMATS},
    # Which keys are found decides more than what exactly is read there (KVTuner, arXiv 2502.04420).
    "k8v4": KVFormat("k8v4", INT8, INT4),
}
