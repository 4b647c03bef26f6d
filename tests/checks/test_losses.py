"""Losses are means by kind, and every limit counts."""

from typing import Any

from checks.losses import LIMITS, conclude

KINDS = ("text", "code", "copies", "trails", "needles")


def side(**losses: float) -> list[dict[str, Any]]:
    rows = []
    for kind in KINDS:
        loss = losses.get(kind, 0.0)
        rows += [{"kind": kind, "tokens": 9, "loss": 1.0 + d + loss, "first": 0.5} for d in (-1, 1)]
    return rows


def test_means_are_compared_kind_by_kind() -> None:
    result = conclude({"policy": side(text=0.005, trails=3.0), "stock": side()})
    assert result["ok"], "trails have no limit"
    assert abs(result["kinds"]["text"]["lost"] - 0.005) < 1e-9
    assert result["kinds"]["text"]["prompts"] == 2


def test_every_limit_counts() -> None:
    for kind, limit in LIMITS.items():
        assert not conclude({"policy": side(**{kind: limit + 0.001}), "stock": side()})["ok"], kind
    worse = side()
    worse[-1]["first"] = 0.4
    assert not conclude({"policy": worse, "stock": side()})["ok"], "a needle was lost"
