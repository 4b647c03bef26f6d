"""Prompts with their right answers, of five kinds: what an answer may need of its prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_headaware.tasks.code import code_windows
from vllm_headaware.tasks.needle import needle_samples
from vllm_headaware.tasks.samples import make_samples
from vllm_headaware.tasks.text import text_windows

ASKED = "\n\nOnce more, word for word:\n\n"
TOLD = 32
"""Tokens of a passage to repeat that its prompt ends with."""


@dataclass(frozen=True)
class Given:
    """A prompt and its answer, as token ids.

    Attributes:
        kind: text, code, copies, needles or trails; or of tasks.long.
        before: a start of the prompt that is a request of its own before, an earlier turn.
    """

    kind: str
    prompt: list[int]
    answer: list[int]
    before: list[int] = field(default_factory=list)


def make_given(
    tokenizer: Any,
    *,
    split: str,
    count: int,
    tokens: int,
    passage_tokens: int,
    copied_tokens: int,
    seed: int,
) -> list[list[Given]]:
    """Text and code that go on, passages to repeat word for word, needles, and trails from variable
    to variable: `count` of each kind, kind by kind.

    Args:
        split: "calibration" or "evaluation".
        tokens: of a prompt; needles and trails may have a few less.
        passage_tokens: of an answer that goes on with a text or with code.
        copied_tokens: of an answer that repeats.

    Raises:
        HeadAwareError: unknown split, or prompts that do not fit in what there is of text or code.
    """
    asked: dict[str, Any] = {"split": split, "count": count}
    whole = tokens + passage_tokens
    words: dict[str, Any] = {**asked, "tokens": tokens, "seed": seed}
    passages = {
        "text": text_windows(tokenizer, tokens=whole, **asked),
        "code": code_windows(tokenizer, tokens=whole, **asked),
    }
    samples: dict[str, list[Any]] = {
        "needles": [*needle_samples(tokenizer, **words)],
        "trails": [*make_samples(tokenizer, "variable_tracking", **words)],
    }

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    again = encode(ASKED)
    length = tokens - len(again) - TOLD
    copies = []
    for ids in text_windows(tokenizer, tokens=length, **asked):
        start = length // 16
        passage = ids[start : start + TOLD + copied_tokens]
        copies.append(Given("copies", [*ids, *again, *passage[:TOLD]], passage[TOLD:]))
    return [
        *([Given(kind, ids[:tokens], ids[tokens:]) for ids in passages[kind]] for kind in passages),
        copies,
        *(
            [Given(kind, one.prompt_token_ids, encode(one.reply)) for one in samples[kind]]
            for kind in samples
        ),
    ]
