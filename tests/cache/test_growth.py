"""How long answers are expected to become."""

import random

from vllm_headaware.cache.growth import ENOUGH, FIRST_GUESS, MEMORY, Growth


def test_cautious_before_it_has_seen_any() -> None:
    growth = Growth()
    assert growth.expected(0, 8000) == FIRST_GUESS
    assert growth.expected(0, 100) == 100, "never more than it may have"
    for _ in range(ENOUGH - 1):
        growth.ended(20)
    assert growth.expected(0, 8000) == FIRST_GUESS
    growth.ended(20)
    assert growth.expected(0, 8000) == 20


def test_a_high_quantile_of_what_ended() -> None:
    growth, rng = Growth(), random.Random(1)
    lengths = [rng.randrange(1, 1000) for _ in range(500)]
    for length in lengths:
        growth.ended(length)
    expected = growth.expected(0, 8000)
    assert 0.93 < sum(length <= expected for length in lengths) / 500 < 0.97
    assert growth.expected(800, 8000) > expected, "of those that are as long already"


def test_an_answer_longer_than_any_doubles() -> None:
    growth = Growth()
    for _ in range(100):
        growth.ended(50)
    assert growth.expected(50, 8000) == 100
    assert growth.expected(600, 8000) == 1200
    assert growth.expected(600, 700) == 700


def test_old_answers_are_forgotten() -> None:
    growth = Growth()
    for _ in range(MEMORY):
        growth.ended(4000)
    for _ in range(MEMORY):
        growth.ended(10)
    assert growth.expected(0, 8000) == 10


def test_reserving_expects_everything() -> None:
    growth = Growth(reserve=True)
    growth.ended(5)
    assert growth.expected(0, 8000) == 8000
