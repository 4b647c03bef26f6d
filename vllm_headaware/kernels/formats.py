"""KV formats: how a head class stores K and V, and the bytes that takes. No torch.

Quantised formats keep, besides the integers, one scale per token and head for K and one for V
(bfloat16), and int4 a lowest value each as well; all of it lies in the block and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KVFormat:
    """One way to store the K and V of a KV head.

    Attributes:
        name: as in --kv-retrieval-dtype; for unquantised formats the torch dtype's name.
        bits: of one element.
        extra_bytes: of scales and lowest values, per token and head, K and V together.
    """

    name: str
    bits: int
    extra_bytes: int = 0

    @property
    def quantised(self) -> bool:
        return self.extra_bytes > 0

    def token_bytes(self, head_size: int) -> int:
        """Bytes of the K and V of one token of one KV head."""
        return 2 * head_size * self.bits // 8 + self.extra_bytes


FORMATS = {
    f.name: f
    for f in (
        KVFormat("float32", 32),
        KVFormat("bfloat16", 16),
        KVFormat("float16", 16),
        KVFormat("int8", 8, extra_bytes=4),
        KVFormat("int4", 4, extra_bytes=8),
    )
}
