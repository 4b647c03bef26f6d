"""Budgets in tokens: what is asked for, what is achieved, and the ladder of tighter windows."""

import dataclasses
import itertools

import pytest

from tests.plan.test_plan import DEMO, LARGE, plan_for
from vllm_headaware.config import KVPolicyConfig, make_config
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.plan.budget import WEIGHTS, held_tokens
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.plan.ladder import make_ladder
from vllm_headaware.plan.plan_json import plan_from_dict, plan_to_dict


@pytest.mark.parametrize("budget", [2048, 4096, 8192])
def test_achieved_is_asked_less_part_of_a_block(budget: int) -> None:
    plan = plan_for(LARGE, budget=budget)
    assert plan.budget == budget
    assert 0.98 * budget < plan.mean_tokens() <= budget


@pytest.mark.parametrize("budget", [700, 1024, 2048, 4096])
@pytest.mark.parametrize("geometry", [DEMO, LARGE], ids=["demo", "8B"])
def test_blocks_are_chosen_for_the_windows_of_the_budget(
    geometry: ModelGeometry, budget: int
) -> None:
    plan = plan_for(geometry, budget=budget)
    assert plan.request_waste(geometry.max_model_len) < 0.05


@pytest.mark.parametrize("budget", [700, 2048])
def test_the_mean_is_of_blocks_really_held(budget: int) -> None:
    plan = plan_for(LARGE, budget=budget)
    # Every phase of every block size: the lengths run through a multiple of all of them.
    lengths = range(100_000, 100_000 + plan.alignment)
    blocks = [
        sum(c.num_heads * c.blocks(n) * c.block_tokens for c in plan.classes) for n in lengths
    ]
    mean = sum(blocks) / len(blocks) / LARGE.num_heads_total
    assert mean == pytest.approx(plan.mean_tokens(), rel=0.01)


def test_classes_share_it_as_the_weights_say() -> None:
    plan = plan_for(LARGE, budget=8192)
    kept = {c.name: held_tokens(c, c.policy.window, 10**6) for c in plan.classes}
    for name, weight in WEIGHTS.items():
        assert kept[name] == pytest.approx(weight * kept["retrieval"], abs=2)


def test_a_part_that_reaches_the_longest_request_is_no_limit() -> None:
    plan = plan_for(DEMO, budget=4096)
    assert [c.policy.window is None for c in plan.classes] == [True, False, False]
    assert 0.4 * DEMO.max_model_len < plan.mean_tokens() <= 4096


def test_a_budget_below_sinks_and_a_block_is_refused() -> None:
    with pytest.raises(HeadAwareError, match=r"budget of 100 tokens is less than the \d+ that"):
        plan_for(DEMO, budget=100)


def test_a_budget_is_instead_of_windows() -> None:
    with pytest.raises(HeadAwareError, match="window set, but budget"):
        make_config({"policy": "headaware", "budget": 2048, "window": 512})
    with pytest.raises(HeadAwareError, match="budget must be a whole number"):
        make_config({"policy": "headaware", "budget": -1})
    with pytest.raises(HeadAwareError, match="would ignore it"):
        make_config({"policy": "full", "budget": 2048})


def test_one_class_gets_all_of_it() -> None:
    plan = make_plan(KVPolicyConfig("streamingllm", budget=1000), DEMO)
    assert 900 < plan.mean_tokens() <= 1000
    assert plan_from_dict(plan_to_dict(plan)) == plan


def small_plan() -> Plan:
    return plan_for(ModelGeometry(30, 9, 3, 64, "float32", 8192), budget=1200)


def test_the_ladder_goes_down_class_by_class() -> None:
    plan = small_plan()
    levels = make_ladder(plan.classes, plan.windows, 0.25)
    assert levels[0] == plan.windows
    changed = []
    for wide, tight in itertools.pairwise(levels):
        (index,) = [i for i in range(3) if wide[i] != tight[i]]
        was, now = wide[index], tight[index]
        assert was is not None
        assert now is not None
        assert now < was
        changed.append(index)
    assert changed == sorted(changed, reverse=True)
    assert set(changed) == {0, 1, 2}, "a capped retrieval class tightens too, and last"
    for wide_window, floor in zip(levels[0], levels[-1], strict=True):
        assert wide_window is not None
        assert floor is not None
        assert floor >= 0.25 * wide_window


def test_every_step_of_the_ladder_frees_blocks() -> None:
    plan = small_plan()
    held = [
        sum(plan.blocks(8000, windows=windows).values())
        for windows in make_ladder(plan.classes, plan.windows, 0.25)
    ]
    assert held == sorted(held, reverse=True)
    assert held[-1] < held[0] / 2


def test_a_floor_of_one_and_unlimited_classes_stay() -> None:
    plan = small_plan()
    assert make_ladder(plan.classes, plan.windows, 1.0) == [plan.windows]
    everything = (None, None, None)
    assert make_ladder(plan.classes, everything, 0.1) == [everything]


def test_most_blocks_bounds_every_moment() -> None:
    plan = plan_for(DEMO, sink=50, window=97, induction_window=333)
    for c, chunk in itertools.product(plan.classes, (1, 2, 50, 200)):
        most = c.most_blocks(1000, c.policy.window, chunk)
        held = [c.blocks(n, max(n - chunk, 0)) for n in range(1, 1001)]
        assert max(held) <= most
        assert max(held) >= most - 1, "the bound should be tight"


def test_a_window_of_its_own() -> None:
    c = plan_for(DEMO).classes[2]
    assert c.with_window(c.policy.window) is c
    narrow = c.with_window(32)
    assert narrow.policy.window == 32
    assert dataclasses.replace(narrow, policy=c.policy) == c
