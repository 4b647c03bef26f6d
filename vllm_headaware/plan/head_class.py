"""One class of KV heads of a plan, and the blocks a request holds of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from vllm_headaware.plan.windows import Window, first_window_block, reading_window, sink_blocks
from vllm_headaware.policies.base import HeadPolicy


@dataclass(frozen=True)
class HeadClass:
    """One class of KV heads of a plan; one KV-cache group of the engine."""

    policy: HeadPolicy
    block_tokens: int
    num_heads: int

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def sink_blocks(self) -> int:
        """Whole blocks that hold the sinks."""
        return sink_blocks(self.policy.sink, self.block_tokens)

    @property
    def heavy_hitter_blocks(self) -> int:
        """Blocks kept where blocks are evicted by score: the budget, at least sinks and two."""
        return max((self.policy.heavy_hitters or 0) // self.block_tokens, self.sink_blocks + 2)

    def first_window_block(self, num_processed: int, num_prompt: int = 0) -> int:
        """Index of the first block the next query (position num_processed) sees by its window."""
        reading = num_processed < num_prompt
        window = self.reading_window(self.policy.window) if reading else self.policy.window
        return first_window_block(num_processed, window, self.block_tokens)

    def reading_window(self, window: Window) -> Window:
        """What a request's own window is while its prompt is read, where there is room."""
        return reading_window(window, self.policy.prefill_window)

    def blocks(self, num_tokens: int, num_processed: int | None = None, num_prompt: int = 0) -> int:
        """Blocks one request holds.

        Args:
            num_tokens: tokens that have a slot, computed or being computed.
            num_processed: tokens whose step is over; num_tokens - 1 (decoding) when None.
            num_prompt: of these, tokens of the prompt; 0 counts all as generated.
        """
        if num_processed is None:
            num_processed = max(num_tokens - 1, 0)
        total = -(-num_tokens // self.block_tokens)
        if self.policy.heavy_hitters is not None:
            in_flight = total - -(-num_processed // self.block_tokens)
            return min(total, self.heavy_hitter_blocks + in_flight)
        first = self.first_window_block(num_processed, num_prompt)
        return total - max(first - self.sink_blocks, 0)

    def kept_window(self, num_prompt: int) -> Window:
        """What its window is once a prompt of num_prompt tokens has been read: where heads keep a
        share of it, what they keep lies at its end."""
        policy = self.policy
        if policy.window is not None or policy.keep >= 1:
            return policy.window
        kept = max(math.ceil(num_prompt * policy.keep), policy.recent)
        first = max(num_prompt - kept, 0) // self.block_tokens
        return -first * self.block_tokens if first > self.sink_blocks else None

    def with_window(self, window: Window) -> HeadClass:
        """The class as a request sees it that has a window of its own."""
        if window == self.policy.window:
            return self
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, window=window))

    def most_blocks(self, num_tokens: int, window: Window, in_flight: int = 1) -> int:
        """Most blocks a request holds at any moment until it has num_tokens tokens.

        Args:
            window: the request's own.
            in_flight: tokens that are scheduled and whose step is not over.
        """
        total = -(-num_tokens // self.block_tokens)
        if window is None and self.policy.heavy_hitters is not None:
            return min(total, self.heavy_hitter_blocks + 1 + -(-in_flight // self.block_tokens))
        if window is None or window <= 0:
            hidden = -(window or 0) // self.block_tokens - self.sink_blocks
            return total - max(hidden, 0)
        recent = window - 1 + in_flight + 2 * self.block_tokens - 2
        return min(total, self.sink_blocks + recent // self.block_tokens)
