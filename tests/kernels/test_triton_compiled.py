"""The Triton kernels compiled for sm_80 and sm_90 as serving launches them: no spills, wide loads,
matrix instructions, and what docs/gpu-kernels.json says."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from checks.gpu_kernels import CASES, TABLE
from testbench.one_side import ask

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
    if kernel == "decode":
        assert row["copies"] >= 4, "nothing is under way while a tile is met"


@pytest.mark.slow
@pytest.mark.gpu
def test_the_table_is_what_the_compiler_makes(
    record_property: Callable[[str, object], None],
) -> None:
    names = [case.name for case in CASES]
    with ThreadPoolExecutor(2) as pool:
        made = [*pool.map(compiled, (names[::2], names[1::2]))]
    assert all(half["ok"] for half in made)
    rows = {name: row for half in made for name, row in half["rows"].items()}
    assert set(rows) == set(known())
    for name, row in rows.items():
        kept = known()[name]
        assert abs(row["registers"] - kept["registers"]) <= 16, name
        assert row["products"] == kept["products"], name
        assert row["wide_loads"] == kept["wide_loads"], name
    record_property("specialisations", len(rows))
    record_property("spills", sum(row["spills"] for row in rows.values()))
    record_property("kernels", len({name.rsplit(", ", 2)[1] for name in rows}))


def compiled(names: list[str]) -> dict[str, Any]:
    """What checks.gpu_kernels says of some cases."""
    asked = [part for name in names for part in ("--case", name)]
    return ask("checks.gpu_kernels", asked)[1]
