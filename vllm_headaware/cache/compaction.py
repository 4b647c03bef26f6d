"""What a worker is told of a compaction: a class's tokens of a request move together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Move:
    """Of one request in one class.

    Attributes:
        class_index: of the plan.
        before: ids of the blocks that it held, by position.
        after: the same afterwards; 0, the null block, where there is none.
        first: position of the first block, after the sinks', that holds what stays.
        num_tokens: how many it had.
    """

    class_index: int
    before: list[int]
    after: list[int]
    first: int
    num_tokens: int
