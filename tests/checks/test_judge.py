"""make smoke says ok only when every promise is kept."""

import copy
from typing import Any

import pytest

from checks.smoke import judge
from testbench.metrics_text import metric_values

HTTP = {"checks": {"chat": "ok", "completion": "ok"}}
OURS = {
    "kv8k": {"bytes": 40},
    "needle": {"accuracy": 0.85},
    "decode": {"tokens_per_second": 16.0},
}
STOCK = {
    "kv8k": {"bytes": 100},
    "needle": {"accuracy": 0.9},
    "decode": {"tokens_per_second": 10.0},
}


def test_at_the_limits_it_is_ok() -> None:
    result = judge(HTTP, OURS, STOCK)
    assert result["ok"]
    assert result["failures"] == []
    assert result["decode_ratio"] == 1.6
    assert (result["kv_bytes_8k"], result["kv_bytes_8k_stock"]) == (40, 100)
    assert (result["needle_headaware"], result["needle_full"]) == (0.85, 0.9)


@pytest.mark.parametrize(
    ("task", "number", "value", "says"),
    [
        ("kv8k", "bytes", 41, "kv_bytes_8k"),
        ("needle", "accuracy", 0.8, "needle_headaware"),
        ("decode", "tokens_per_second", 15.9, "decode_ratio"),
    ],
)
def test_past_a_limit_it_is_not(task: str, number: str, value: float, says: str) -> None:
    ours: dict[str, Any] = copy.deepcopy(OURS)
    ours[task][number] = value
    result = judge(HTTP, ours, STOCK)
    assert not result["ok"]
    assert len(result["failures"]) == 1
    assert says in result["failures"][0]


def test_a_failed_http_check_is_not_ok() -> None:
    result = judge({"checks": {"chat": "ok", "completion": "empty answer"}}, OURS, STOCK)
    assert not result["ok"]
    assert result["failures"] == ["completion: empty answer"]


def test_metric_values_are_those_of_the_metric() -> None:
    text = """\
# HELP vllm_headaware_kv_used_bytes x
vllm_headaware_kv_used_bytes{model_name="a} 5",engine="0"} 3.5e+06
vllm_headaware_kv_used_bytes 17
vllm_headaware_kv_used_bytes_more 99
"""
    assert list(metric_values(text, "vllm_headaware_kv_used_bytes")) == [3.5e6, 17.0]
