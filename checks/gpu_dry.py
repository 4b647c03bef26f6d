"""All of the GPU path that can be shown without a GPU: kernels in Triton's interpreter against the
reference, the real engine on model runner V2, builders, compilation for sm_80 and sm_90.

    python -m checks.gpu_dry     the tests marked `gpu`; the last line is one JSON object
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import pytest

COUNTED = ("kernels", "cases", "engine_tokens_checked", "specialisations", "spills")


class Tally:
    """Adds up what tests record of themselves."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """pytest's hook: a test has ended."""
        if report.when == "call":
            for name, value in report.user_properties:
                self.sums[name] += value


def main() -> int:
    """Run the tests and sum up."""
    tally = Tally()
    status = pytest.main(["-m", "gpu", "tests/gpu", "tests/kernels", *sys.argv[1:]], [tally])
    counts = {name: tally.sums[name] for name in COUNTED}
    enough = all(counts[name] > 0 for name in COUNTED if name != "spills")
    ok = status == 0 and enough and counts["spills"] == 0
    print(json.dumps({"ok": ok, **counts}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
