"""The Triton kernels against the reference, in the interpreter; see triton_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.engine.child import run_child

FAMILIES = {
    "formats": (
        *("float32 in float32", "bfloat16 in float32", "float16 in float32", "int8 in float32"),
        *("int4 in float32", "int8 in bfloat16, a window", "int8 in float16, a window"),
        *("int4 in bfloat16, a window", "int4 in float16, a window"),
        *("k8v4 in float32", "k8v4 in bfloat16, a window", "k8v4 in float16, a window"),
        *("bfloat16 in bfloat16, a window", "bfloat16 in float16, a window"),
    ),
    "shapes": (
        *("heads of 80", "heads of 96", "heads of 112", "heads of 128", "heads of 256"),
        "heads of 112 in k8v4",
        *("groups of 1", "groups of 3", "groups of 5", "groups of 8", "groups of 16"),
    ),
    "classes": (
        *("three classes", "three formats", "K of 8 bits and V of 4 beside int8"),
        "a class without heads",
        *("the first class without heads", "windows of one's own", "reading windows"),
    ),
    "terms": ("soft cap", "attention sinks", "an exact window"),
    "batches": ("batch independence",),
}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Of every case: seed, largest difference, limit, ok."""
    names = [name for family in FAMILIES.values() for name in family]
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(
            lambda half: run_child("tests.kernels.triton_cases", half, fresh=True),
            (names[::2], names[1::2]),
        )
        return {name: result for half in halves for name, result in half.items()}


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_agree_with_the_reference(
    results: dict[str, Any], family: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("cases", len(FAMILIES[family]))
    wrong = {name: results[name] for name in FAMILIES[family] if not results[name]["ok"]}
    assert wrong == {}
