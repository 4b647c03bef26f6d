"""The overload tool judges what it measured: good requests, and every claim."""

import argparse
from typing import Any

import pytest

from checks.overload import conclude, summarise
from testbench.streaming import Answer, _read


def answer(tokens: list[int], ttft: float = 1.0, step: float = 0.1, **kwargs: Any) -> Answer:
    """An answer sent at 0 whose tokens came one every `step` seconds."""
    times = [ttft + step * number for number in range(len(tokens))]
    return Answer("r", 0.0, tokens, times, **kwargs)


def test_good_requests_are_in_time_for_both_limits() -> None:
    limits = argparse.Namespace(ttft=2.0, tpot=0.2)
    answers = [
        answer([1, 2, 3]),
        answer([1, 2, 3], ttft=2.5),
        answer([1, 2, 3], step=0.3),
        answer([1], error="HTTP 500"),
    ]
    result = summarise(answers, 10.0, limits)
    assert (result["completed"], result["failed"], result["good"]) == (3, 1, 1)
    assert result["goodput_per_second"] == pytest.approx(0.1)
    assert result["errors"] == ["HTTP 500"]


def test_a_stream_is_read_token_by_token() -> None:
    got = Answer("r", 0.0)
    _read("", got)
    _read(
        'data: {"choices": [{"token_ids": [5, 6]}]}',
        got,
    )
    _read("data: [DONE]", got)
    assert got.tokens == [5, 6]
    assert len(got.times) == 2
    _read('data: {"error": {"message": "no"}}', got)
    assert got.error is not None


def test_every_claim_counts() -> None:
    ours = {
        "sent": 3,
        "completed": 3,
        "failed": 0,
        "wrong": 0,
        "squeezed_blocks": 0.0,
        "tokens_checked": 9,
        "preemptions": 0.0,
        "bytes_held_after": 0.0,
        "goodput_per_second": 2.0,
        "tokens_per_second": 9.0,
        "ttft_p95": 1.0,
    }
    stock = {"goodput_per_second": 1.0, "tokens_per_second": 3.0, "ttft_p95": 4.0}
    stock["preemptions"] = 5.0
    limits = argparse.Namespace(memory=1, ttft=1.0, tpot=1.0, elastic="prompt")
    assert conclude({"policy": ours, "stock": stock}, 4.0, limits)["ok"]
    for key, value in (
        ("failed", 1),
        ("wrong", 1),
        ("tokens_checked", 0),
        ("preemptions", 1.1),
        ("goodput_per_second", 1.9),
        ("bytes_held_after", 5.0),
    ):
        changed = {"policy": {**ours, key: value}, "stock": stock}
        assert not conclude(changed, 4.0, limits)["ok"], key
    limits.elastic = "all"
    assert not conclude({"policy": ours, "stock": stock}, 4.0, limits)["ok"]
    squeezed = {"policy": {**ours, "squeezed_blocks": 7.0}, "stock": stock}
    assert conclude(squeezed, 4.0, limits)["ok"]
