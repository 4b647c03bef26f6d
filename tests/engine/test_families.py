"""Every model family that is served follows the reference; what cannot be served says why."""

from pathlib import Path

import pytest

from testbench.families import FAMILIES, REFUSED
from testbench.one_side import ask

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_tested_families_are_documented() -> None:
    listed = DOCUMENT.read_text(encoding="utf-8").partition("Llama, ")[2].partition(".\n")[0]
    assert ["Llama", *listed.replace("\n", " ").split(", ")] == list(FAMILIES)


@pytest.mark.engine
@pytest.mark.slow
def test_every_family_is_served_or_refused() -> None:
    status, result = ask("checks.families", timeout=900)
    assert status == 0, result
    assert result["ok"]
    assert result["mismatches"] == 0
    assert set(result["served"]) == set(FAMILIES)
    assert set(result["refused"]) == set(REFUSED)
