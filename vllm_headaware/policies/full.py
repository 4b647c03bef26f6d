"""full: every head keeps everything; the plugin stays out of vLLM's way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_headaware.config.kv_policy import KVPolicyConfig
from vllm_headaware.policies.base import Classified, HeadPolicy, HeadScores, one_class


@dataclass(frozen=True)
class Full:
    """Stock vLLM. It can be planned, so that it can be compared, but it is never installed."""

    needs_profile: bool = False

    def classify(
        self,
        config: KVPolicyConfig,
        shape: tuple[int, int],
        scores: Mapping[str, HeadScores] | None,
    ) -> Classified:
        """One unlimited class with all heads."""
        nothing = one_class(shape)
        return (HeadPolicy("full"),), nothing, nothing
