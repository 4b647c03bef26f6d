"""Answers that are given: the engine decodes token by token, but what it says is laid down, so that
one sees how likely it found that.

vLLM takes log probabilities from the logits as they were before any processor changed them.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

KEY = "forced_answer"
"""Of SamplingParams.extra_args: the token ids to say."""


class Forced(AdapterLogitsProcessor):
    """Give it to vllm.LLM as one of logits_processors."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """Of a request with KEY among its extra arguments."""
        answer = (params.extra_args or {}).get(KEY)
        if answer is None:
            return None

        def force(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            token = answer[min(len(output_ids), len(answer) - 1)]
            kept = logits[token].clone()
            logits.fill_(float("-inf"))
            logits[token] = kept
            return logits

        return force
