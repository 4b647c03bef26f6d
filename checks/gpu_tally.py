"""What the tests of the GPU path looked at: a plugin of pytest, `-p checks.gpu_tally`.

Tests record numbers as properties. Their sums are shown before pytest's closing line, and a run in
which one of them is missing, or in which a kernel spills registers, has failed.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

COUNTED = ("kernels", "cases", "engine_tokens_checked", "specialisations", "spills")
sums: Counter[str] = Counter()


def summary() -> dict[str, Any]:
    """`ok` and what was counted."""
    counts = {name: sums[name] for name in COUNTED}
    enough = all(counts[name] > 0 for name in COUNTED if name != "spills")
    return {"ok": enough and counts["spills"] == 0, **counts}


def pytest_runtest_logreport(report: Any) -> None:
    """pytest's hook: a test has ended."""
    if report.when == "call":
        for name, value in report.user_properties:
            sums[name] += value


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """pytest's hook: all have."""
    terminalreporter.write_line(f"the GPU path without a GPU: {json.dumps(summary())}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """pytest's hook: what is the exit status?"""
    in_worker = hasattr(session.config, "workerinput")
    if not in_worker and session.exitstatus == pytest.ExitCode.OK and not summary()["ok"]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
