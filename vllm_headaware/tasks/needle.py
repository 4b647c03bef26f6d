"""Needle prompts: a secret number hidden in filler, asked for at the end.

The single-needle task of RULER (arXiv 2404.06654) in a form that a 135M chat model can do when it
sees everything, and that nobody can do when the needle is not visible.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from vllm_headaware.tasks.prompts import (
    encode_chat,
    longest_that_fits,
    pool_of,
    secret_number,
    sentence,
)
from vllm_headaware.tasks.words import WordPool


@dataclass(frozen=True)
class NeedleSample:
    """One prompt and what its answer must contain.

    Attributes:
        prompt_token_ids: the prompt through the model's chat template.
        prompt_text: the user's message.
        answer: the secret number.
        reply: a full right answer, as text.
        depth: where the needle stands, 0 (start) to 1 (end) of the filler.
    """

    prompt_token_ids: list[int]
    prompt_text: str
    answer: str
    reply: str
    depth: float


def needle_samples(
    tokenizer: Any, *, split: str, count: int, tokens: int, seed: int = 0
) -> list[NeedleSample]:
    """Generate prompts of about `tokens` tokens (never more).

    Args:
        tokenizer: a Hugging Face tokenizer; its chat template is used where it has one.
        split: "calibration" or "evaluation"; see eval/words.py.

    Raises:
        HeadAwareError: unknown split, or a length the question does not fit in.
    """
    pool = pool_of(split)
    rng = random.Random(f"{split} {tokens} {seed}")
    return [_sample(tokenizer, pool, tokens, rng) for _ in range(count)]


def score_answer(sample: NeedleSample, text: str) -> float:
    """1.0 if the secret number occurs in the generated text, not inside a longer one, else 0.0."""
    return float(re.search(rf"(?<!\d){re.escape(sample.answer)}(?!\d)", text) is not None)


def _sample(tokenizer: Any, pool: WordPool, tokens: int, rng: random.Random) -> NeedleSample:
    key = rng.choice(pool.keys)
    number = secret_number(pool, rng)
    fact = f"secret number of {key} is {number}."
    depth = rng.random()
    filler = [sentence(pool, rng) for _ in range(tokens // 6 + 1)]

    def message(num_sentences: int) -> str:
        text = filler[:num_sentences]
        text.insert(round(depth * num_sentences), f"The {fact}")
        return (
            "A secret number is hidden in the following text. Remember it.\n\n"
            + " ".join(text)
            + f"\n\nWhat is the secret number of {key} in the text above?"
        )

    def build(num_sentences: int) -> list[int]:
        return encode_chat(tokenizer, message(num_sentences))

    size = longest_that_fits(build, len(filler), tokens, "a needle prompt")
    return NeedleSample(build(size), message(size), number, f"The {fact}", depth)
