"""Read Prometheus text."""

from __future__ import annotations

import re
from collections.abc import Iterator


def metric_values(text: str, name: str) -> Iterator[float]:
    """Values of all series of a metric in Prometheus text."""
    for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, flags=re.MULTILINE):
        yield float(value)
