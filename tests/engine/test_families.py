"""Every model family that is served follows the reference; what cannot be served says why."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from testbench.families import FAMILIES, REFUSED

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_tested_families_are_documented() -> None:
    listed = DOCUMENT.read_text(encoding="utf-8").partition("Llama, ")[2].partition(".\n")[0]
    assert ["Llama", *listed.replace("\n", " ").split(", ")] == list(FAMILIES)


@pytest.mark.engine
@pytest.mark.slow
def test_every_family_is_served_or_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "checks.families"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, result
    assert result["ok"]
    assert result["mismatches"] == 0
    assert set(result["served"]) == set(FAMILIES)
    assert set(result["refused"]) == set(REFUSED)
