"""What a model is asked while its heads are measured.

One needle shows the heads that fetch a fact; a chain of variables (RULER, arXiv 2404.06654) also
those that go from one fact to the next. A ranking by needles alone loses chains; one by both still
loses passages that are copied, and code.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_headaware.tasks.given import make_given
from vllm_headaware.tasks.needle import NeedleSample, needle_samples
from vllm_headaware.tasks.samples import make_samples

CHAIN_EVERY = 3
"""One question of so many is a chain."""
REPLY_TOKENS = 32
"""Room for the answer after a prompt."""
PASSAGE_TOKENS = 64
"""Of an answer that goes on with a text, or repeats it."""
KINDS = 5
"""Of answers; see make_given()."""
ANSWER_EVERY = 12
"""Of so many samples, one answer of each kind and length; with fewer than two, halves are of one
length each."""


@dataclass(frozen=True)
class Question:
    """A prompt of the calibration split with its right answer.

    Attributes:
        input_ids: int64 [T], both together, on the CPU.
        num_answer_tokens: how many of the last tokens are the answer.
        needle: token ids of the secret number; empty for a chain.
        is_far: whether there is a needle that neither sinks nor window show.
        weight: in the ranking of heads.
    """

    input_ids: torch.Tensor
    num_answer_tokens: int
    needle: tuple[int, ...]
    is_far: bool
    weight: float


def make_questions(
    tokenizer: Any, *, samples: int, lengths: Sequence[int], seed: int, sink: int, window: int
) -> list[Question]:
    """Needles of all lengths, dealt in turn, and chains of the shortest.

    Needles weigh as they are long: heads that carry little in short prompts are needed in long
    ones, and what is served is longer still. All chains together weigh as all needles.

    Args:
        samples: how many questions, at least 2.
        lengths: of the prompts, in tokens.
        sink, window: what a local head would keep, in tokens.
    """
    num_chains = max(samples // CHAIN_EVERY, 1)
    counts = Counter(itertools.islice(itertools.cycle(lengths), samples - num_chains))
    whole = sum(counts.elements())
    needles = [
        _question(tokenizer, sample, sample.answer, _is_far(sample, sink, window), length / whole)
        for length, count in counts.items()
        for sample in needle_samples(
            tokenizer, split="calibration", count=count, tokens=length, seed=seed
        )
    ]
    chains = [
        _question(tokenizer, sample, "", False, 1 / num_chains)
        for sample in make_samples(
            tokenizer,
            "variable_tracking",
            split="calibration",
            count=num_chains,
            tokens=min(lengths),
            seed=seed,
        )
    ]
    return needles + chains


def make_answers(tokenizer: Any, *, each: int, lengths: Sequence[int], seed: int) -> list[Question]:
    """Prompts of five kinds, see make_given().

    Args:
        each: prompts of each kind and length; whole rounds follow each other.
        lengths: in tokens.
    """
    columns = [
        column
        for length in lengths
        for column in make_given(
            tokenizer,
            split="calibration",
            count=each,
            tokens=length,
            passage_tokens=PASSAGE_TOKENS,
            copied_tokens=PASSAGE_TOKENS,
            seed=seed,
        )
    ]
    return [
        Question(torch.tensor([*one.prompt, *one.answer]), len(one.answer), (), False, 1.0)
        for row in zip(*columns, strict=True)
        for one in row
    ]


def answers_each(samples: int) -> int:
    """Answers of each kind and length that go with so many questions, and contexts of each kind of
    token_scores.py."""
    return max(samples // ANSWER_EVERY, 1)


def answer_lengths(config: Any, longest: int) -> tuple[int, ...]:
    """Tokens of prompts that are read but not differentiated: longer ones can be afforded.

    Args:
        config: a transformers configuration, of the language model.
        longest: of the questions, in tokens.
    """
    limit = getattr(config, "max_position_embeddings", None) or 2 * longest + PASSAGE_TOKENS
    return longest, min(2 * longest, limit - PASSAGE_TOKENS)


def _question(tokenizer: Any, sample: Any, needle: str, is_far: bool, weight: float) -> Question:
    answer = tokenizer.encode(sample.reply, add_special_tokens=False)
    input_ids = torch.tensor(sample.prompt_token_ids + answer)
    secret = tokenizer.encode(needle, add_special_tokens=False) if needle else ()
    return Question(input_ids, len(answer), tuple(secret), is_far, weight)


def _is_far(sample: NeedleSample, sink: int, window: int) -> bool:
    """Whether a needle lies behind the sinks and before the window of the answer."""
    length = len(sample.prompt_token_ids)
    place = sample.depth * length
    return place > sink + REPLY_TOKENS and length - place > window + 2 * REPLY_TOKENS
