"""streamingllm: every KV head keeps attention sinks and a window, whatever it does.

From "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453), with one
difference: keys keep their original rotary positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_headaware.policies.base import HeadPolicy

if TYPE_CHECKING:
    from vllm_headaware.config import KVPolicyConfig
    from vllm_headaware.geometry import ModelGeometry
    from vllm_headaware.profile.format import HeadProfile


@dataclass(frozen=True)
class StreamingLLM:
    """The baseline that knows no head classes: `sink` and `window` hold for all heads."""

    needs_profile: bool = False
    options: tuple[str, ...] = ("sink", "window", "prefill_window", "budget", "local_dtype")

    def classify(
        self, config: KVPolicyConfig, geometry: ModelGeometry, profile: HeadProfile | None
    ) -> tuple[tuple[HeadPolicy, ...], list[list[int]], list[list[int]]]:
        """One windowed class with all heads, in the KV format of local heads."""
        nothing = [[0] * geometry.num_kv_heads for _ in range(geometry.num_layers)]
        policy = HeadPolicy(
            "local",
            config.sink,
            config.window,
            config.local_dtype,
            prefill_window=config.prefill_window,
        )
        return (policy,), nothing, nothing
