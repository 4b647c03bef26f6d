"""KV-cache specs of head classes: what vLLM's allocator needs to know about a child layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.utils.math_utils import cdiv
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, KVCacheSpec

from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.plan.windows import Window, first_window_block, sink_blocks

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True, kw_only=True)
class UnlimitedSpec(FullAttentionSpec):
    """A class whose heads keep everything, but of requests with a budget of their own."""

    head_class: str
    sink: int
    heavy_hitters: bool = False
    """Whether blocks are evicted by the attention they got."""

    @property
    def window(self) -> None:
        return None

    @property
    def sink_blocks(self) -> int:
        return sink_blocks(self.sink, self.block_size)

    def first_window_block(self, num_processed: int, window: Window) -> int:
        """First block that the query at position num_processed sees by a request's own window."""
        return first_window_block(num_processed, window, self.block_size)

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Classes never merge, even with equal block sizes."""
        return _all_of_class(self.head_class, kv_cache_specs)


@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(AttentionSpec):
    """A class whose heads keep `sink` first and `window` last tokens, rounded out to blocks.

    `max_in_flight_tokens` is what vLLM may have scheduled but not settled for a request: blocks of
    those tokens are held besides sinks and window. While a prompt is read, a window is always at
    least `prefill_window` tokens wide.
    """

    head_class: str
    sink: int
    window: int
    prefill_window: int
    max_in_flight_tokens: int

    @property
    def sink_blocks(self) -> int:
        return sink_blocks(self.sink, self.block_size)

    def first_window_block(self, num_processed: int, window: Window) -> int:
        """First block that the query at position num_processed sees by its window."""
        return first_window_block(num_processed, window, self.block_size)

    def max_blocks(self, window: int) -> int:
        """Most blocks a request can hold at any moment, however long: prefill chunks included."""
        recent = window - 1 + self.max_in_flight_tokens
        return self.sink_blocks + cdiv(recent, self.block_size) + 1

    def steady_blocks(self, window: int) -> int:
        """Most blocks a request can hold while nothing but a token of it is in flight."""
        return self.sink_blocks + cdiv(window - 1, self.block_size) + 1

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Bytes of one layer for a request of the longest length."""
        longest = cdiv(vllm_config.model_config.max_model_len, self.block_size)
        most = self.max_blocks(max(self.window, self.prefill_window))
        return min(longest, most) * self.page_size_bytes

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Classes never merge, even with equal block sizes."""
        return _all_of_class(self.head_class, kv_cache_specs)


HeadClassSpec = UnlimitedSpec | SinkWindowSpec


def make_spec(
    head_class: HeadClass,
    *,
    num_kv_heads: int,
    head_size: int,
    vllm_config: VllmConfig,
) -> HeadClassSpec:
    """The spec of a child layer with num_kv_heads heads of a class."""
    kv_format = FORMATS[head_class.policy.dtype]
    common: dict[str, Any] = {
        "block_size": head_class.block_tokens,
        "num_kv_heads": num_kv_heads,
        "head_size": head_size,
        "dtype": torch.int8 if kv_format.quantised else getattr(torch, kv_format.name),
        "state_content_bytes": kv_format.token_bytes(head_size),
        "head_class": head_class.name,
    }
    policy = head_class.policy
    if policy.window is None:
        return UnlimitedSpec(
            **common, sink=policy.sink, heavy_hitters=policy.heavy_hitters is not None
        )
    return SinkWindowSpec(
        **common,
        sink=policy.sink,
        window=policy.window,
        prefill_window=policy.prefill_window or 0,
        max_in_flight_tokens=vllm_config.max_in_flight_tokens,
    )


def head_class_of(spec: KVCacheSpec) -> str | None:
    """Name of the head class a spec belongs to, or None for a spec of vLLM's own."""
    return getattr(spec, "head_class", None)


def _all_of_class(name: str, specs: dict[str, KVCacheSpec]) -> bool:
    return all(head_class_of(spec) == name for spec in specs.values())
