"""What `make open-ended` makes of its measurements: every claim counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from checks.open_ended import conclude

RUN = {"completed": 64, "failed": 0, "peak_running": 64.0, "preemptions": 3.0}
POLICY = {**RUN, "bytes_held_after": 0.0, "wrong": 0, "tokens_checked": 90}
GOOD: dict[str, Any] = {
    "short": {"policy": POLICY, "stock": RUN},
    "to_the_limit": {
        "policy": {**POLICY, "goodput_per_second": 2.0, "tokens_per_second": 9.0},
        "stock": {
            **RUN,
            "preemptions": 15.0,
            "goodput_per_second": 1.0,
            "tokens_per_second": 3.0,
        },
    },
}


def test_what_is_good() -> None:
    assert conclude(GOOD)["ok"]


@pytest.mark.parametrize(
    ("load", "what", "value"),
    [
        ("short", "peak_running", 63.0),
        ("short", "failed", 1),
        ("short", "bytes_held_after", 5.0),
        ("to_the_limit", "failed", 1),
        ("to_the_limit", "wrong", 1),
        ("to_the_limit", "tokens_checked", 0),
        ("to_the_limit", "preemptions", 3.1),
        ("to_the_limit", "goodput_per_second", 1.9),
    ],
)
def test_every_claim_counts(load: str, what: str, value: float) -> None:
    runs = copy.deepcopy(GOOD)
    runs[load]["policy"][what] = value
    assert not conclude(runs)["ok"]
