"""What all generated prompts share: the chat template, a length limit, filler sentences."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.tasks.words import POOLS, WordPool


def encode_chat(
    tokenizer: Any, message: str, reply_start: str = "", example: tuple[str, str] | None = None
) -> list[int]:
    """Token ids of a user message, ready for the model's answer.

    Args:
        reply_start: words the answer is made to begin with.
        example: a message and its right answer, which come before as a turn of their own.
    """
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": message}]
        if example:
            shown, answered = example
            turns = [
                {"role": "user", "content": shown},
                {"role": "assistant", "content": answered},
                *turns,
            ]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return tokenizer.encode(text + reply_start, add_special_tokens=False)
    before = "{}\n{}\n\n".format(*example) if example else ""
    return tokenizer.encode(f"{before}{message}\n{reply_start}")


def longest_that_fits(
    build: Callable[[int], list[int]], most: int, tokens: int, what: str = "the prompt"
) -> int:
    """The largest size up to `most` for which build(size) has at most `tokens` token ids.

    Args:
        build: token ids of a prompt by size; more size never makes it shorter.

    Raises:
        HeadAwareError: not even size 0 fits.
    """
    if len(build(0)) > tokens:
        raise HeadAwareError(f"{what} does not fit in {tokens} tokens; ask for more")
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(build(middle)) <= tokens else (low, middle - 1)
    return low


def pool_of(split: str) -> WordPool:
    """The words of a split.

    Raises:
        HeadAwareError: no such split.
    """
    if split not in POOLS:
        raise HeadAwareError(f"split must be one of {', '.join(POOLS)}, got {split!r}")
    return POOLS[split]


def sentence(pool: WordPool, rng: random.Random) -> str:
    """One sentence of filler."""
    parts = (pool.people, pool.actions, pool.things, pool.places)
    return " ".join(rng.choice(part) for part in parts) + "."


def secret_number(pool: WordPool, rng: random.Random) -> str:
    """Five digits; the last bit tells the split."""
    return str(rng.randrange(5000, 50000) * 2 + pool.residue)
