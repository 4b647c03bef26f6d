"""full: every head keeps everything; the plugin stays out of vLLM's way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_headaware.policies.base import HeadPolicy

if TYPE_CHECKING:
    from vllm_headaware.config import KVPolicyConfig
    from vllm_headaware.geometry import ModelGeometry
    from vllm_headaware.profile.format import HeadProfile


@dataclass(frozen=True)
class Full:
    """Stock vLLM. It can be planned, so that it can be compared, but it is never installed."""

    needs_profile: bool = False
    options: tuple[str, ...] = ()

    def classify(
        self, config: KVPolicyConfig, geometry: ModelGeometry, profile: HeadProfile | None
    ) -> tuple[tuple[HeadPolicy, ...], list[list[int]], list[list[int]]]:
        """One unlimited class with all heads."""
        nothing = [[0] * geometry.num_kv_heads for _ in range(geometry.num_layers)]
        return (HeadPolicy("full"),), nothing, nothing
