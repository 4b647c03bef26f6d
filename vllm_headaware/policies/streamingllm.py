"""streamingllm: every KV head keeps attention sinks and a window, whatever it does.

From "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453), with one
difference: keys keep their original rotary positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_headaware.config.kv_policy import KVPolicyConfig
from vllm_headaware.policies.base import Classified, HeadPolicy, HeadScores, one_class


@dataclass(frozen=True)
class StreamingLLM:
    """The baseline that knows no head classes: `sink` and `window` hold for all heads."""

    needs_profile: bool = False

    def classify(
        self,
        config: KVPolicyConfig,
        shape: tuple[int, int],
        scores: Mapping[str, HeadScores] | None,
    ) -> Classified:
        """One windowed class with all heads, in the KV format of local heads."""
        nothing = one_class(shape)
        policy = HeadPolicy(
            "local",
            config.sink,
            config.window,
            config.local_dtype,
            prefill_window=config.reading,
        )
        return (policy,), nothing, nothing
