"""The attention of Llama-3.1-8B, the loads that are measured, and tiny ones for the dry run."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_headaware.config import KVPolicyConfig

BANDWIDTH_BYTES = 2**32


@dataclass(frozen=True)
class Geometry:
    """A layer's attention, and how its KV heads are dealt to the classes."""

    query_heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    retrieval_heads: int = 2
    sink: int = 64
    window: int = KVPolicyConfig.window
    retrieval_block: int = 96
    local_block: int = 32
    hidden_size: int = 4096
    intermediate_size: int = 14336
    layers: int = 16


@dataclass(frozen=True)
class Load:
    """So many requests of so many tokens."""

    requests: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.requests} x {self.tokens}"


@dataclass(frozen=True)
class Scale:
    """Everything that a real run and a dry run have not in common."""

    geometry: Geometry
    decode: tuple[Load, ...]
    prefill: tuple[Load, ...]
    chunk: int
    engine: tuple[Load, ...]
    new_tokens: int
    decode_steps: int
    repeats: int


REAL = Scale(
    Geometry(),
    decode=(Load(64, 8192), Load(8, 32768), Load(256, 1024), Load(1, 32768)),
    prefill=(Load(1, 8192), Load(1, 32768)),
    chunk=8192,
    engine=(Load(64, 8192), Load(8, 32768), Load(1, 512)),
    new_tokens=256,
    decode_steps=64,
    repeats=20,
)
DRY = Scale(
    Geometry(4, 2, 64, 1, 32, 32, 32, 32, hidden_size=128, intermediate_size=256, layers=1),
    decode=(Load(2, 90),),
    prefill=(Load(1, 64),),
    chunk=32,
    engine=(Load(2, 70),),
    new_tokens=16,
    decode_steps=4,
    repeats=1,
)
