"""headaware: long history for the heads that retrieve, sinks and a window for the others.

The idea that only some heads need the whole history is from "Retrieval Head" (arXiv 2404.15574)
and DuoAttention (arXiv 2410.10819); induction heads are from Olsson et al. 2022. Heads are ranked
rather than compared with a threshold, because on grouped-query models most gates exceed any fixed
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_headaware.config.kv_policy import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.policies.base import Classified, HeadPolicy, HeadScores

RETRIEVAL, INDUCTION, LOCAL = 0, 1, 2
FEW_HEADS, FEWEST_RETRIEVAL = 12, 2
"""Of so few heads a share is too little: so many keep everything at least, unless it is 0 or there
are but two. Gemma-3-270M has three in layers that see everything; one alone loses what two find."""


@dataclass(frozen=True)
class HeadAware:
    """Top heads are retrieval, the next are induction, the rest is local.

    Where prompts are read with wider windows, both are the heads that answers need longest.
    Where they are not, retrieval heads are those with the highest gate saliency, and induction
    heads the rest's best by induction score.
    """

    needs_profile: bool = True

    def classify(
        self,
        config: KVPolicyConfig,
        shape: tuple[int, int],
        scores: Mapping[str, HeadScores] | None,
    ) -> Classified:
        """Rank all KV heads of the model together; counts are rounded up, ties go to the earlier.

        Raises:
            HeadAwareError: no scores were given.
        """
        if scores is None:
            raise HeadAwareError("policy headaware needs a head profile")
        first, second = ("gate", "induction") if config.reading == 0 else ("answer", "answer")
        by_first, by_second = rank_heads(scores[first]), rank_heads(scores[second])
        num_layers, num_kv_heads = shape
        total = num_layers * num_kv_heads
        num_retrieval = math.ceil(config.retrieval_share * total)
        if config.retrieval_share and total < FEW_HEADS:
            num_retrieval = max(num_retrieval, min(FEWEST_RETRIEVAL, total - 1))
        num_induction = min(math.ceil(config.induction_share * total), total - num_retrieval)

        heads = [(y, h) for y in range(num_layers) for h in range(num_kv_heads)]
        retrieval = sorted(heads, key=lambda at: by_first[at[0]][at[1]])[:num_retrieval]
        rest = [at for at in heads if at not in set(retrieval)]
        induction = sorted(rest, key=lambda at: by_second[at[0]][at[1]])[:num_induction]

        classes = [[LOCAL] * num_kv_heads for _ in range(num_layers)]
        for y, h in retrieval:
            classes[y][h] = RETRIEVAL
        for y, h in induction:
            classes[y][h] = INDUCTION
        windows = {
            # Sinks of retrieval heads matter to requests whose budget caps these heads too.
            "retrieval": (None, config.retrieval_dtype),
            "induction": (config.induction_window, config.induction_dtype),
            "local": (config.window, config.local_dtype),
        }
        policies = tuple(
            HeadPolicy(
                name,
                config.sink,
                window,
                dtype,
                prefill_window=config.reading,
                keep=config.retrieval_keep if window is None else 1.0,
                recent=config.retrieval_recent if window is None else 0,
            )
            for name, (window, dtype) in windows.items()
        )
        return policies, classes, by_first


def rank_heads(scores: HeadScores) -> list[list[int]]:
    """Rank of every `[layer][KV head]` over the whole model: 0 is the highest score.

    Ties go to the lower layer, then the lower head, so that equal profiles give equal plans.
    """
    order = sorted(
        ((-score, y, h) for y, row in enumerate(scores) for h, score in enumerate(row)),
    )
    ranks = [[0] * len(row) for row in scores]
    for rank, (_, y, h) in enumerate(order):
        ranks[y][h] = rank
    return ranks
