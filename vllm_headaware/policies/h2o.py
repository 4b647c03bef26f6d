"""h2o: every KV head keeps sinks, its latest tokens, and the blocks that got the most attention.

From "H2O: Heavy-Hitter Oracle" (arXiv 2306.14048), with three differences: whole blocks are kept or
evicted, all heads of the model together, and attention sinks always stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_headaware.config.kv_policy import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.policies.base import Classified, HeadPolicy, HeadScores, one_class


@dataclass(frozen=True)
class H2O:
    """One class with all heads, whose blocks are evicted by score (cache/heavy_hitters.py)."""

    needs_profile: bool = False

    def classify(
        self,
        config: KVPolicyConfig,
        shape: tuple[int, int],
        scores: Mapping[str, HeadScores] | None,
    ) -> Classified:
        """One class with all heads, in the KV format of local heads.

        Raises:
            HeadAwareError: no budget was given.
        """
        if not config.budget:
            raise HeadAwareError("--kv-policy h2o needs --kv-budget, the tokens that a head keeps")
        nothing = one_class(shape)
        policy = HeadPolicy("heavy_hitters", config.sink, None, config.local_dtype, config.budget)
        return (policy,), nothing, nothing
