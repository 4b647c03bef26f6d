"""The progress bar of whatever measures heads."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def profiling_bar(total: int, progress: bool | None) -> Any:
    """A bar of `total` samples on stderr.

    Args:
        progress: whether to show it; None means only on a terminal.
    """
    return tqdm(
        total=total,
        desc="profiling heads",
        unit="sample",
        file=sys.stderr,
        disable=not sys.stderr.isatty() if progress is None else not progress,
    )
