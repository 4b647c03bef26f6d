"""Retrieval-copy score (Wu et al., "Retrieval Head", arXiv 2404.15574).

When the model writes a token of the needle, does the head's strongest attention lie on that very
token in the needle? A head scores the share of needle tokens for which it does. Only samples that
the model answers right count.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.profile.probe import (
    max_over_group,
    row_attention,
)
from vllm_headaware.profile.questions import Question


class CopyWatch:
    """Looks on while a model is given a prompt and its right answer.

    Args:
        model: a Hugging Face decoder.
        question: with a needle, or nothing is scored.
    """

    def __init__(self, model: Any, question: Question) -> None:
        ids = question.input_ids.tolist()
        split = len(ids) - question.num_answer_tokens
        self._needle = needle = list(question.needle)
        self._source, self._target = _find(ids[:split], needle), _find(ids[split:], needle)
        self._rows = torch.arange(len(needle)) + split + (self._target or 0) - 1
        self._windows = layer_windows(model.config)
        self._scores: dict[int, torch.Tensor] = {}

    def saw(self, layer: int, query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        """Where the heads of a layer point while the needle is written; shapes as in Watcher."""
        self._scores[layer] = torch.zeros(key.shape[1])
        if self._source is not None and self._windows[layer] is None:
            wanted = torch.arange(len(self._needle)) + self._source
            rows = self._rows.to(query.device)
            strongest = row_attention(query, key, rows, scale).argmax(-1).cpu()
            hits = (strongest == wanted).float().mean(-1)
            self._scores[layer] = max_over_group(hits, key.shape[1])

    def scores(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Share of needle tokens that each KV head points at when they are written.

        Args:
            logits: [num_answer_tokens, vocabulary], of the answer.

        Returns:
            float32 [num_layers, num_kv_heads], 0 in layers that see only a window of their own; or
            None for a sample that does not count: the secret is not found token by token on both
            sides, or the model does not write it.
        """
        if self._source is None or self._target is None:
            return None
        written = logits[self._target : self._target + len(self._needle)].argmax(-1)
        if written.tolist() != self._needle:
            return None
        return torch.stack([self._scores[layer] for layer in sorted(self._scores)])


def _find(ids: list[int], part: list[int]) -> int | None:
    if not part:
        return None
    for start in range(len(ids) - len(part) + 1):
        if ids[start : start + len(part)] == part:
            return start
    return None
