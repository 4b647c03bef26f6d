"""The policy in the scheduler of the next vLLM, from the Python source of its CUDA wheel: grouping
through its builder, look-ups, admission, windows. No model runs; see bare_run.py."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.engine.child import run_child
from tools.contract import newest_source
from vllm_headaware.vllm_compat.contract import SERIES

pytestmark = [pytest.mark.engine, pytest.mark.slow]
NEXT = "0.33.0"


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """Reports of the installed vLLM and of the next."""
    assert NEXT.startswith(SERIES[-1])
    try:
        _, folder = newest_source(NEXT)
    except subprocess.CalledProcessError:
        pytest.skip("the package registry cannot be reached")
    return {
        "installed": run_child("tests.vllm_compat.bare_run", {}, fresh=True),
        "next": run_child(
            "tests.vllm_compat.bare_run", {}, {"PYTHONPATH": str(folder.parent)}, True
        ),
    }


def test_it_is_the_next_that_ran(runs: dict[str, Any]) -> None:
    assert NEXT in runs["next"]["folder"]
    assert NEXT not in runs["installed"]["folder"]


@pytest.mark.parametrize("which", ["installed", "next"])
def test_blocks_are_the_plan_and_come_back(runs: dict[str, Any], which: str) -> None:
    run = runs[which]
    assert run["faults"] == []
    assert run["unfinished"] == 0
    assert max(run["held"]) > run["blocks"] / 2
    assert run["held"][-1] == 0
    assert run["left"] == run["blocks"]
    assert run["hit_tokens"] > 0


def test_both_hold_the_same_at_every_step(runs: dict[str, Any]) -> None:
    assert runs["next"]["held"] == runs["installed"]["held"]
