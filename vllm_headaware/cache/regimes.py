"""Which windows a request has at which positions: what it keeps, and what a replay needs to know.

A query sees by the windows that hold at its position. They change where the prompt ends, where a
prefix hit ends, and where a request is squeezed, and never show again what was hidden before.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.plan.windows import Window, Windows, first_token

FOREVER = 2**40
"""A position that no request reaches."""


class Regimes:
    """The windows of one request from when it starts until it ends or is put back.

    Args:
        reading: (position, windows) in order: how the prompt is read, from position 0 on.
        num_prompt: tokens of the prompt.
        windows: what holds from the prompt's end on, or from the last entry of `reading` if that
            is later.
        least: what the request may be squeezed to; a class is None where nothing ever goes back.

    Attributes:
        reading: the last entry's windows: what the rest of the prompt is read by.
        changes: (position, windows) in order, those of the prompt first.
        cached_until: from this position on, a later request would see more than this one did; its
            blocks are not for the prefix cache.
    """

    def __init__(
        self,
        classes: Sequence[HeadClass],
        reading: Sequence[tuple[int, Windows]],
        num_prompt: int,
        windows: Windows,
        least: Windows,
    ) -> None:
        self.least, self.changes = least, list(reading)
        start, last = self.changes[-1]
        self.reading, turn = last, max(num_prompt, start)
        self.cached_until = FOREVER
        if windows != last:
            self.cached_until = min(
                max(turn, _hides_from(c, wide, narrow))
                for c, wide, narrow in zip(classes, last, windows, strict=True)
            )
            self._add(turn, windows)

    @property
    def windows(self) -> Windows:
        """What holds once the prompt is read."""
        return self.changes[-1][1]

    def at(self, position: int) -> Windows:
        """The windows of the query at a position."""
        start, windows = self.changes[-1]
        if start <= position:
            return windows
        earlier = (windows for start, windows in reversed(self.changes) if start <= position)
        return next(earlier, self.changes[0][1])

    def squeeze(self, position: int, windows: Windows) -> None:
        """Narrow what holds from a position on, which is beyond the prompt."""
        self.cached_until = min(self.cached_until, position)
        self._add(position, windows)

    def _add(self, position: int, windows: Windows) -> None:
        if self.changes[-1][0] == position:
            self.changes.pop()
        self.changes.append((position, windows))


def _hides_from(head_class: HeadClass, wide: Window, narrow: Window) -> int:
    """First position whose query sees less by the narrow window than by the wide one."""
    if wide == narrow or narrow is None or narrow <= 0:
        return FOREVER
    block = head_class.block_tokens
    first = max(head_class.sink_blocks, first_token(0, wide) // block)
    return (first + 1) * block + narrow - 1
