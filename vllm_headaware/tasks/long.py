"""Prompts of every kind that a long context is used for, with their right answers as token ids."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.tasks.given import Given, make_given
from vllm_headaware.tasks.prompts import encode_chat, longest_that_fits, pool_of
from vllm_headaware.tasks.samples import make_samples, needles
from vllm_headaware.tasks.text import text_windows

QUESTIONS = {
    "needles": "single_needle",
    "multi_key": "multi_key",
    "multi_value": "multi_value",
    "trails_2": "variable_tracking",
    "trails_3": "trail_3",
    "trails_4": "trail_4",
    "counting": "common_words",
    "tables": "table",
    "logs": "log",
    "edits": "edit",
}
"""Kinds that are tasks of tasks.samples."""
PASSAGES = ("text", "code", "copies")
"""Kinds that go on with a passage, or repeat one."""
SECOND_TURN, LONG_ANSWER = "second_turn", "long_answer"
KINDS = (*QUESTIONS, SECOND_TURN, *PASSAGES, LONG_ANSWER)
ANSWER, COPIED, LONG = 128, 96, 2000
"""Tokens of answers that go on, that repeat, and of long ones."""
NOTED = "I will remember them."


def longest_answer(kind: str) -> int:
    """Most tokens of an answer of a kind."""
    return LONG if kind == LONG_ANSWER else max(ANSWER, COPIED)


def make_long(
    tokenizer: Any, kinds: Sequence[str], *, split: str, count: int, tokens: int, seed: int
) -> list[Given]:
    """Prompts of at most `tokens` tokens, `count` of each kind, kind by kind.

    Args:
        split: "calibration" or "evaluation"; nothing is shared between them.

    Raises:
        HeadAwareError: an unknown kind or split, or a length that a kind does not fit in.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise HeadAwareError(
            f"no kind of prompt is called {', '.join(sorted(unknown))}; there are"
            f" {', '.join(KINDS)}"
        )
    passages: dict[str, list[Given]] = {}
    if not set(kinds).isdisjoint(PASSAGES):
        made = make_given(
            tokenizer, split=split, count=count, tokens=tokens, passage_tokens=ANSWER,
            copied_tokens=COPIED, seed=seed,
        )  # fmt: skip
        passages = {of_kind[0].kind: of_kind for of_kind in made}
    found = []
    for kind in kinds:
        if kind in passages:
            found += passages[kind]
        elif kind == LONG_ANSWER:
            whole = text_windows(tokenizer, split=split, count=count, tokens=tokens + LONG)
            found += [Given(kind, ids[:tokens], ids[tokens:]) for ids in whole]
        elif kind == SECOND_TURN:
            found += _second_turns(tokenizer, split, count, tokens, seed)
        else:
            samples = make_samples(
                tokenizer, QUESTIONS[kind], split=split, count=count, tokens=tokens, seed=seed
            )
            found += [
                Given(kind, one.prompt_token_ids, _encode(tokenizer, one.reply)) for one in samples
            ]
    return found


def _second_turns(tokenizer: Any, split: str, count: int, tokens: int, seed: int) -> list[Given]:
    """Needles whose question comes in a second turn: what is kept was chosen without it."""
    pool, rng = pool_of(split), random.Random(f"{SECOND_TURN} {split} {tokens} {seed}")
    found = []
    for _ in range(count):
        draft = needles(pool, rng, tokens)

        def turns(size: int, draft: Any = draft) -> tuple[str, str]:
            text, question = draft.message(size).rsplit("\n\n", 1)
            return text, question

        def build(size: int, draft: Any = draft, turns: Any = turns) -> list[int]:
            text, question = turns(size)
            return encode_chat(tokenizer, question, draft.reply_start, (text, NOTED))

        size = longest_that_fits(build, tokens, tokens, "a prompt of two turns")
        prompt = build(size)
        first = encode_chat(tokenizer, turns(size)[0], NOTED)
        pairs = zip(prompt, first, strict=False)
        before = [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        found.append(Given(SECOND_TURN, prompt, _encode(tokenizer, draft.reply), before))
    return found


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
