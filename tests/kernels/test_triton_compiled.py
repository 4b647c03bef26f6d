"""The Triton kernels compiled for sm_80 and sm_90 as serving launches them: no spills, wide loads,
matrix instructions, and what docs/gpu-kernels.json says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from checks.gpu_kernels import CASES, TABLE

ROOT = TABLE.parents[1]
AT_LEAST_WIDE = ("store", "prefill", "decode", "merge")
"""Kernels that move rows: 16 bytes at once."""


def known() -> dict[str, dict[str, int]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def test_the_table_has_every_case() -> None:
    assert {name.rsplit(", ", 2)[0] for name in known()} == {case.name for case in CASES}


@pytest.mark.parametrize("name", known())
def test_nothing_spills_and_loads_are_wide(name: str) -> None:
    row, kernel = known()[name], name.rsplit(", ", 2)[1]
    assert row["spills"] == 0
    assert row["shared"] <= 164 * 1024, "shared memory of a GPU of sm_80"
    if kernel in AT_LEAST_WIDE:
        assert row["wide_loads"] >= 4
    if kernel in ("prefill", "decode"):
        assert row["products"] >= 8


@pytest.mark.slow
def test_the_table_is_what_the_compiler_makes() -> None:
    """Of the default's kernels; `make gpu-dry` looks at all."""
    done = subprocess.run(
        [sys.executable, "-m", "checks.gpu_kernels", "--case", "8B, int8"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["ok"]
    for name, row in made["rows"].items():
        kept = known()[name]
        assert abs(row["registers"] - kept["registers"]) <= 16, name
        assert row["products"] == kept["products"], name
        assert row["wide_loads"] == kept["wide_loads"], name
