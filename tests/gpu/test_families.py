"""Model families on model runner V2, with the Triton kernels in the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

FAMILIES = ("Gemma-2", "gpt-oss")
"""With every term that kernels know; `python -m checks.families --runner v2` does all families."""

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.gpu]


def test_families_follow_the_reference(record_property: Callable[[str, object], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "checks.families", "--runner", "v2", *FAMILIES],
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, result
    assert set(result["served"]) == set(FAMILIES)
    record_property("engine_tokens_checked", result["tokens_checked"])
