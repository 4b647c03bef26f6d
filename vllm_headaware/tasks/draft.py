"""What a generated task is before and after its length is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One prompt and what its answer must contain.

    Attributes:
        prompt_token_ids: the prompt through the model's chat template, the answer begun.
        prompt_text: the user's message.
        answers: words or numbers that must occur.
        reply: how a right answer goes on, as text.
    """

    prompt_token_ids: list[int]
    prompt_text: str
    answers: tuple[str, ...]
    reply: str


@dataclass(frozen=True)
class Draft:
    """A sample whose length is still open.

    Attributes:
        message: the user's message by size, in sentences, list entries or words.
        reply_start: words the answer is made to begin with.
    """

    message: Callable[[int], str]
    reply_start: str
    answers: tuple[str, ...]
    reply: str
