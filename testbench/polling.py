"""Look at something again and again, in a thread of its own."""

from __future__ import annotations

import threading
import time
from typing import Self


class Poller:
    """Calls look() every `seconds` while it is used as a context manager.

    A look that ends in an OSError, as when a server does not answer, is left out.

    Attributes:
        started: monotonic seconds at which looking began.
    """

    def __init__(self, seconds: float) -> None:
        self.started = 0.0
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def look(self) -> None:
        """What is done each time."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.look()
            except OSError:
                continue
