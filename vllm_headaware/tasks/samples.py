"""Long-context tasks in the manner of RULER (arXiv 2404.06654), generated for a length and a split.

Every task asks for words that stand in the prompt, and lets the answer begin for the model, so that
a few tokens tell what it knows. Nothing is shared between the splits (eval/words.py).
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable
from typing import Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.tasks.draft import Draft, Sample
from vllm_headaware.tasks.lookups import LOOKUPS
from vllm_headaware.tasks.prompts import (
    encode_chat,
    longest_that_fits,
    pool_of,
    secret_number,
    sentence,
)
from vllm_headaware.tasks.words import WordPool


def make_samples(
    tokenizer: Any, task: str, *, split: str, count: int, tokens: int, seed: int = 0
) -> list[Sample]:
    """Generate prompts of about `tokens` tokens (never more).

    Args:
        task: a key of TASKS, or of lookups.LOOKUPS.
        tokenizer: a Hugging Face tokenizer; its chat template is used where it has one.
        split: "calibration" or "evaluation".

    Raises:
        HeadAwareError: unknown task or split, or a length the question does not fit in.
    """
    make = {**TASKS, **LOOKUPS}.get(task)
    if make is None:
        raise HeadAwareError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    pool = pool_of(split)
    rng = random.Random(f"{task} {split} {tokens} {seed}")
    samples = []
    for _ in range(count):
        draft = make(pool, rng, tokens)
        example = _example(draft, task, pool, rng, tokens) if task in SHOWN_ONCE else None

        def build(
            size: int, draft: Draft = draft, example: tuple[str, str] | None = example
        ) -> list[int]:
            return encode_chat(tokenizer, draft.message(size), draft.reply_start, example)

        size = longest_that_fits(build, tokens, tokens, f"a {task} prompt")
        samples.append(Sample(build(size), draft.message(size), draft.answers, draft.reply))
    return samples


def score(sample: Sample, text: str) -> float:
    """Share of the answers that occur in the text as whole words, 0.0 to 1.0; case is ignored."""
    found = [
        re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None
        for answer in sample.answers
    ]
    return sum(found) / len(found)


def needles(
    pool: WordPool, rng: random.Random, tokens: int, *, keys: int = 1, values: int = 1
) -> Draft:
    """Secret numbers hidden in filler, `values` for each of `keys` cities; one is asked for."""
    cities = rng.sample(pool.keys, keys)
    numbers: dict[str, None] = {}
    while len(numbers) < keys * values:
        numbers[secret_number(pool, rng)] = None
    owners = [(city, number) for city, number in zip(cities * values, numbers, strict=True)]
    one = "The" if values == 1 else "A"
    facts = [(rng.random(), f"{one} secret number of {c} is {n}.") for c, n in owners]
    facts.sort()
    filler = [sentence(pool, rng) for _ in range(tokens // 6 + 1)]
    asked = tuple(number for city, number in owners if city == cities[0])
    plural, verb = ("", "is") if values == 1 else ("s", "are")

    def message(size: int) -> str:
        text = filler[:size]
        for depth, fact in reversed(facts):
            text.insert(round(depth * min(size, len(filler))), fact)
        return (
            "Secret numbers are hidden in the following text. Remember them.\n\n"
            + " ".join(text)
            + f"\n\nWhat {verb} the secret number{plural} of {cities[0]} in the text above?"
        )

    start = f"The secret number{plural} of {cities[0]} {verb}"
    return Draft(message, start, asked, f" {' and '.join(asked)}.")


def variable_tracking(pool: WordPool, rng: random.Random, tokens: int, *, hops: int = 2) -> Draft:
    """A number is assigned to a variable, that variable to the next, and so on; which hold it?"""
    names: dict[str, None] = {}
    while len(names) < hops + 1:
        names["".join(rng.choices(pool.letters, k=3))] = None
    chain = list(names)
    number = secret_number(pool, rng)
    facts = [f"VAR {chain[0]} = {number}."]
    facts += [f"VAR {b} = VAR {a}." for a, b in itertools.pairwise(chain)]
    depths = sorted(rng.random() for _ in facts)
    filler = [sentence(pool, rng) for _ in range(tokens // 6 + 1)]

    def message(size: int) -> str:
        text = filler[:size]
        for depth, fact in reversed(list(zip(depths, facts, strict=True))):
            text.insert(round(depth * min(size, len(filler))), fact)
        return (
            "Remember the variables that are assigned in the following text.\n\n"
            + " ".join(text)
            + f"\n\nWhich {len(chain)} variables have the value {number}?"
        )

    start = f"The variables that have the value {number} are"
    return Draft(message, start, tuple(chain), f" {', '.join(chain)}.")


def common_words(pool: WordPool, rng: random.Random, tokens: int, *, common: int = 1) -> Draft:
    """A numbered list of words; `common` of them fill half of it, the others occur evenly."""
    nouns = rng.sample(pool.nouns, len(pool.nouns))
    frequent, rare = nouns[:common], itertools.cycle(nouns[common:])
    listed: list[str] = []
    while len(listed) < tokens // 3:
        run = [*frequent, *itertools.islice(rare, common)]
        rng.shuffle(run)
        listed += run
    which, verb = ("word", "is") if common == 1 else (f"{common} words", "are")

    def message(size: int) -> str:
        words = "\n".join(f"{i}. {word}" for i, word in enumerate(listed[:size], 1))
        return (
            f"In the following list, {which} {verb} much more common than the others.\n\n{words}"
            f"\n\nWhich {which} {verb} the most common in the list above?"
        )

    start = f"The most common {which} in the list {verb}"
    return Draft(message, start, tuple(frequent), f" {', '.join(frequent)}.")


def frequent_words(pool: WordPool, rng: random.Random, tokens: int) -> Draft:
    """Made-up words; of every twenty, three words make up 8, 4 and 3, the others 5 together."""
    words: dict[str, None] = {}
    while len(words) < 30:
        words["".join(rng.choices(pool.syllables, k=3))] = None
    first, second, third, *rare = words
    text: list[str] = []
    while len(text) < tokens:
        run = [first] * 8 + [second] * 4 + [third] * 3 + rng.sample(rare, 5)
        rng.shuffle(run)
        text += run

    def message(size: int) -> str:
        return (
            "Read the following coded text and find its most frequent words.\n\n"
            + " ".join(text[:size])
            + "\n\nWhich 3 words are the most frequent in the coded text above?"
        )

    top = (first, second, third)
    return Draft(message, "The 3 most frequent words are:", top, f" {', '.join(top)}.")


def _example(
    asked: Draft, task: str, pool: WordPool, rng: random.Random, tokens: int
) -> tuple[str, str]:
    """A short message of a task and its right answer, which shares nothing with what is asked."""
    draft = asked
    while not set(draft.answers).isdisjoint(asked.answers):
        draft = TASKS[task](pool, rng, tokens)
    return draft.message(tokens // EXAMPLE_TOKENS), draft.reply_start + draft.reply


def _multi_key(pool: WordPool, rng: random.Random, tokens: int) -> Draft:
    return needles(pool, rng, tokens, keys=4)


def _multi_value(pool: WordPool, rng: random.Random, tokens: int) -> Draft:
    return needles(pool, rng, tokens, values=2)


TASKS: dict[str, Callable[[WordPool, random.Random, int], Draft]] = {
    "single_needle": needles,
    "multi_key": _multi_key,
    "multi_value": _multi_value,
    "variable_tracking": variable_tracking,
    "trail_3": functools.partial(variable_tracking, hops=3),
    "trail_4": functools.partial(variable_tracking, hops=4),
    "common_words": common_words,
    "frequent_words": frequent_words,
}
SHOWN_ONCE = frozenset({"variable_tracking", "trail_3", "trail_4"})
"""Tasks that come with an answered example before them, as in RULER: a small model that is not
shown what a chain is repeats sentences instead."""
EXAMPLE_TOKENS = 50
"""Tokens of a prompt for each sentence of its example, which so takes about a fifth of it."""
