"""What a running request has in one class, at hand for the steps in which nothing much happens."""

from __future__ import annotations

from collections.abc import Sized
from typing import NamedTuple

from vllm_headaware.plan.windows import Window, first_window_block


class AtHand(NamedTuple):
    """Blocks of a running request in one class, as they come and go.

    Attributes:
        own: what ClassManager.own_blocks() counts.
        blocks: by position.
    """

    own: Sized
    blocks: Sized
    block_tokens: int

    def quiet_until(self, processed: int, window: Window) -> int:
        """Tokens of a decoding request up to which it takes and gives back no block of this class.

        Blocks enter the prefix cache elsewhere; see budgets.py.

        Args:
            processed: of its tokens, those whose step is over.
            window: its window at this position.
        """
        block = self.block_tokens
        until = len(self.blocks) * block
        if window is None or window <= 0:
            return until
        # The query of the last of so many tokens stands one before.
        dropped = (first_window_block(processed, window, block) + 1) * block + window - 1
        return dropped if dropped < until else until
