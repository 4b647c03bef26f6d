"""h2o: every KV head keeps sinks, its latest tokens, and the blocks that got the most attention.

From "H2O: Heavy-Hitter Oracle" (arXiv 2306.14048), with three differences: whole blocks are kept or
evicted, all heads of the model together, and attention sinks always stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.policies.base import HeadPolicy

if TYPE_CHECKING:
    from vllm_headaware.config import KVPolicyConfig
    from vllm_headaware.geometry import ModelGeometry
    from vllm_headaware.profile.format import HeadProfile


@dataclass(frozen=True)
class H2O:
    """One class with all heads, whose blocks are evicted by score (cache/heavy.py)."""

    needs_profile: bool = False
    options: tuple[str, ...] = ("sink", "budget", "local_dtype")

    def classify(
        self, config: KVPolicyConfig, geometry: ModelGeometry, profile: HeadProfile | None
    ) -> tuple[tuple[HeadPolicy, ...], list[list[int]], list[list[int]]]:
        """One class with all heads, in the KV format of local heads.

        Raises:
            HeadAwareError: no budget was given.
        """
        if not config.budget:
            raise HeadAwareError("--kv-policy h2o needs --kv-budget, the tokens that a head keeps")
        nothing = [[0] * geometry.num_kv_heads for _ in range(geometry.num_layers)]
        policy = HeadPolicy("heavy", config.sink, None, config.local_dtype, config.budget)
        return (policy,), nothing, nothing
