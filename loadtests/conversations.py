"""Conversations of several turns, as a timed trace in Mooncake's format that generators replay.

Every turn sends all turns before it again, so its prompt begins with the prompt before. The trace
says lengths and which parts are equal, not words: the generator draws tokens. What stands in a
prompt for an earlier answer is therefore not the server's own answer, and a prefix hit ends there
at the latest. Turns come at fixed times, whether or not the last answer is complete.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

CHUNK_TOKENS = 16
"""Tokens that one hash of the trace stands for; all lengths are multiples of it."""


@dataclass(frozen=True)
class Conversations:
    """What the `data` of a scenario with `dataset: conversations` says.

    Attributes:
        conversations, turns: how many, and how many turns each.
        first_len, turn_len: tokens of the first message, with its system prompt, and of each later.
        output_len: tokens of every answer.
        spread_seconds: conversations begin at random times in this span.
        think_seconds: from one turn of a conversation to the next.

    Raises:
        ValueError: a length that is not a positive multiple of CHUNK_TOKENS, or no turn at all.
    """

    conversations: int
    turns: int
    first_len: int
    turn_len: int
    output_len: int
    spread_seconds: float
    think_seconds: float

    def __post_init__(self) -> None:
        for name in ("first_len", "turn_len", "output_len"):
            length = getattr(self, name)
            if length <= 0 or length % CHUNK_TOKENS:
                raise ValueError(f"{name} must be a multiple of {CHUNK_TOKENS}, not {length}")
        if self.conversations < 1 or self.turns < 1:
            raise ValueError("conversations and turns must be at least 1")

    @property
    def requests(self) -> int:
        """Requests of all turns."""
        return self.conversations * self.turns

    def trace(self, seed: int) -> list[dict[str, Any]]:
        """One entry per request, in the order in which they are sent; times in milliseconds."""
        rng = random.Random(seed)
        starts = [rng.uniform(0, self.spread_seconds) for _ in range(self.conversations)]
        starts = [start - min(starts) for start in starts]
        entries = []
        for number, start in enumerate(starts):
            for turn in range(self.turns):
                length = self.first_len + turn * (self.output_len + self.turn_len)
                first = number * 2**20
                entries.append(
                    {
                        "timestamp": round(1000 * (start + turn * self.think_seconds)),
                        "input_length": length,
                        "output_length": self.output_len,
                        "hash_ids": [first + chunk for chunk in range(length // CHUNK_TOKENS)],
                    }
                )
        return sorted(entries, key=lambda entry: entry["timestamp"])
