"""`make gpu-check` without a GPU: every part at tiny sizes, in the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.gpu]
ROOT = Path(__file__).parents[2]


def test_every_part_runs_dry() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "checks.gpu", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    summary = lines[-1]
    assert summary["ok"], done.stdout[-3000:]
    assert summary["peers_that_could_not_run"] == 0, done.stdout[-3000:]
    sides = {line["side"] for line in lines if line.get("part") == "decode" and "side" in line}
    assert sides == {*(f"ours {kind}" for kind in ("k8v4", "int8", "int4", "bfloat16")), "stock",
                     "vllm int8", "vllm int4"}  # fmt: skip
    assert {line["side"] for line in lines if "decode_step_ms" in line} == {"stock", "ours"}
