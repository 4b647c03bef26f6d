"""A passage to repeat word for word: what induction heads do, over a gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_headaware.tasks.text import text_windows

ASKED = "\n\nOnce more, word for word:\n\n"
TOLD = 32
"""Tokens of the passage that the prompt ends with."""


@dataclass(frozen=True)
class Copy:
    """A prompt that ends in a passage it has given before, and how that goes on, as token ids."""

    prompt_token_ids: list[int]
    reply_token_ids: list[int]


def make_copies(
    tokenizer: Any, *, split: str, count: int, tokens: int, reply_tokens: int
) -> list[Copy]:
    """Held-out text whose first part is to be repeated.

    Args:
        split: "calibration" or "evaluation".
        tokens: of a prompt.
        reply_tokens: of an answer.

    Raises:
        HeadAwareError: unknown split, or prompts that do not fit in the text.
    """
    asked = tokenizer.encode(ASKED, add_special_tokens=False)
    length = tokens - len(asked) - TOLD
    copies = []
    for ids in text_windows(tokenizer, split=split, count=count, tokens=length):
        start = length // 16
        passage = ids[start : start + TOLD + reply_tokens]
        copies.append(Copy([*ids, *asked, *passage[:TOLD]], passage[TOLD:]))
    return copies
