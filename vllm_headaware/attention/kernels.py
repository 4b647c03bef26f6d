"""What serves the split layers of a model: what vLLM allocates by, and a function that attends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm.v1.attention.backend import AttentionBackend

from vllm_headaware.kernels.rows import Put, Take


@dataclass(frozen=True)
class Kernels:
    """`attend(split, query, key, value, output)` is called once per layer and step,
    `reserve(split)` once per layer when the model is built.

    Attributes:
        terms: whether they know what some models add: windows of layers' own, capped logits, and
            sink logits.
        rows: how rows are taken out of their blocks and put back; None: they cannot be.
    """

    backend: type[AttentionBackend]
    attend: Callable[..., None]
    reserve: Callable[..., object] = lambda split: None
    terms: bool = True
    rows: tuple[Take, Put] | None = None
