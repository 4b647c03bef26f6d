"""The interval is that of the binomial where there is one, and pairs stay together."""

from __future__ import annotations

import pytest

from vllm_headaware.eval.interval import relative_interval


def test_one_method_that_is_always_right_leaves_the_others_binomial() -> None:
    own = [1.0] * 80 + [0.0] * 20
    low, high = relative_interval([(own, [1.0] * 100)]) or (0, 0)
    # 0.8 and 1.96 times sqrt(0.8 x 0.2 / 100)
    assert (low, high) == pytest.approx((0.72, 0.88), abs=0.02)


def test_methods_that_fail_on_the_same_prompts_differ_by_nothing() -> None:
    scores = [1.0, 0.0, 1.0, 1.0, 0.5] * 6
    assert relative_interval([(scores, scores)]) == (1.0, 1.0)


def test_tasks_weigh_the_same() -> None:
    low, high = relative_interval([([1.0] * 2, [1.0] * 2), ([0.0] * 50, [1.0] * 50)]) or (0, 0)
    assert low == high == 0.5


def test_nothing_to_compare_with() -> None:
    assert relative_interval([]) is None
    assert relative_interval([([1.0], [0.0])]) is None
    assert relative_interval([([1.0, 1.0], [1.0, 0.0])]) is None, "both drawn are the second"
