"""What measuring the heads of a model will take: memory and time, before its weights are loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vllm_headaware.kernels.score_size import num_features
from vllm_headaware.profile.answers import EPOCHS
from vllm_headaware.profile.described import head_shape
from vllm_headaware.profile.model_hash import read_header
from vllm_headaware.profile.questions import KINDS, PASSAGE_TOKENS, answers_each
from vllm_headaware.profile.token_scores import KINDS as CONTEXT_KINDS
from vllm_headaware.profile.token_scores import TOKENS as CONTEXT_TOKENS

VOCABULARY_ROWS = 6
"""Times that logits of an answer are held: as they come, in float, their logarithms, the wanted
ones, and the gradients of two of these."""
LAYER_STATES, LAYER_INNER = 8, 5
"""Times that a layer's backward pass holds its rows, as wide as the model and as its MLP."""
FORWARDS = 3.3
"""Forward passes that a question takes: there, once more, back, and what windows leave."""
READS = 12
"""Times that an answer's gradient goes through a prompt's keys and values, repeated for all query
heads."""
EFFICIENCY = 0.5
"""Of a model's matrix products, beside one large one."""


@dataclass(frozen=True)
class Estimate:
    """What `vllm-headaware profile` will take.

    Attributes:
        weights: bytes of the model as it is loaded.
        questions: bytes that the longest question's gradients take, beside the weights.
        answers: bytes that the longest answer's take.
        token_scores: bytes that learning them takes.
        flops: floating point operations of everything.
        moved: bytes of keys and values that are read and written.
    """

    weights: int
    questions: int
    answers: int
    token_scores: int
    flops: float
    moved: float

    @property
    def peak(self) -> int:
        """Bytes held at most, what libraries take of a process not counted."""
        return self.weights + max(self.questions, self.answers, self.token_scores)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """On a machine as fast as that."""
        return self.flops / (EFFICIENCY * flops_per_second) + self.moved / bytes_per_second


def estimate(
    config: Any,
    parameters: int,
    *,
    samples: int,
    lengths: Sequence[int],
    answers: int,
    answer_lengths: Sequence[int],
    element_bytes: int = 4,
) -> Estimate:
    """From a model's sizes and the prompts it will be given.

    Args:
        config: a transformers configuration, of the language model.
        parameters: of the model.
        samples, lengths: questions, and their tokens.
        answers, answer_lengths: of each kind and length, and tokens of their prompts.
        element_bytes: of weights and activations.
    """
    layers, width, inner = (
        getattr(config, name) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    query_heads, kv_heads, head = head_shape(config)
    vocabulary = VOCABULARY_ROWS * PASSAGE_TOKENS * config.vocab_size * 4
    longest, longest_read = max(lengths) + PASSAGE_TOKENS, max(answer_lengths) + PASSAGE_TOKENS
    rows = LAYER_STATES * width + LAYER_INNER * inner
    kv_token = 2 * layers * kv_heads * head * element_bytes

    def forward(tokens: float) -> float:
        attention = 2 * layers * query_heads * head * tokens * tokens
        return 2 * (parameters - config.vocab_size * width) * tokens + attention

    read = [tokens for tokens in answer_lengths for _ in range(answers * KINDS)]
    mean = sum(lengths) / len(lengths)
    flops = samples * FORWARDS * forward(mean) + sum(map(forward, read))
    flops += EPOCHS * len(read) * FORWARDS * forward(PASSAGE_TOKENS)
    contexts = len(CONTEXT_KINDS) * answers_each(samples)
    repetition = 2 * min(CONTEXT_TOKENS, max(lengths))
    flops += contexts * forward(repetition)
    repeated = kv_token * query_heads / kv_heads
    return Estimate(
        weights=parameters * element_bytes,
        questions=longest * element_bytes * (layers * width + rows) + vocabulary,
        # One prompt's from its file, and once more with the answer's behind them.
        answers=2 * kv_token * longest_read
        + layers * PASSAGE_TOKENS * element_bytes * rows
        + vocabulary,
        token_scores=4 * layers * kv_heads * (num_features(head) + 1) ** 2
        + element_bytes * repetition * rows,
        flops=flops,
        moved=EPOCHS * READS * repeated * sum(read),
    )


def count_parameters(folder: Path) -> int:
    """Of the safetensors files of a model folder, by their headers."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            _, tensors = read_header(file, path.stat().st_size, path)
        total += sum(math.prod(part["shape"]) for part in tensors.values())
    return total


def speed(device: str) -> tuple[float, float]:
    """Floating point operations and bytes moved per second, of a large product and a copy."""
    a, b = torch.rand(2, 1024, 1024, device=device)
    large = torch.zeros(2**25, device=device)

    def best(work: Any) -> float:
        taken = []
        for _ in range(4):
            begin = time.perf_counter()
            work().sum().item()
            taken.append(time.perf_counter() - begin)
        return min(taken)

    return 2 * 1024**3 / best(lambda: a @ b), 3 * large.nbytes / best(large.clone)
