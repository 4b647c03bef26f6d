"""Model families on model runner V2, with the Triton kernels in the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from testbench.one_side import ask

FAMILIES = ("Gemma-2", "gpt-oss")
"""With every term that kernels know; `python -m checks.families --runner v2` does all families."""

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.gpu]


def test_families_follow_the_reference(record_property: Callable[[str, object], None]) -> None:
    status, result = ask("checks.families", ["--runner", "v2", *FAMILIES], timeout=900)
    assert status == 0, result
    assert set(result["served"]) == set(FAMILIES)
    record_property("engine_tokens_checked", result["tokens_checked"])
