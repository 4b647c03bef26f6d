"""Windows that change while a request runs, in the real engine, against the plain-torch reference
under the windows that were recorded."""

from pathlib import Path
from typing import Any

import pytest

from testbench.small_requests import DRAFTS, POLICY, make_prompts
from tests.engine.scenario import run_scenario
from tests.engine.test_budgets import WIDE, expect_reference
from vllm_headaware.plan import Plan
from vllm_headaware.plan.ladder import make_ladder
from vllm_headaware.plan.plan_json import plan_from_dict

pytestmark = pytest.mark.engine

EVERYTHING = [None, None, None]


@pytest.fixture(scope="module")
def long_prompts() -> list[list[int]]:
    return make_prompts(201, (800, 333, 450, 61, 700, 555, 820))


def test_prompts_are_read_in_full_and_the_surplus_goes_back(
    model: Path, long_prompts: list[list[int]]
) -> None:
    engine = {**POLICY, "max_num_batched_tokens": 100, "max_num_seqs": 7}
    report = run_scenario(model, rounds=[long_prompts], engine=engine)
    assert (report["faults"], report["held_at_end"]) == ([], 0)
    plan = plan_from_dict(report["plan"])
    for index, prompt in enumerate(long_prompts):
        (passes,) = report["passes"][f"0/{index}"]
        assert passes == [0, [[0, EVERYTHING], [len(prompt), list(plan.windows)]]]
    expect_reference(model, report, long_prompts)
    off = run_scenario(
        model, rounds=[long_prompts], engine={**engine, "kv_elastic": "off", "kv_prefill_window": 1}
    )
    expect_reference(model, off, long_prompts)
    assert off["passes"]["0/0"] == [[0, [[0, list(plan.windows)]]]]
    assert off["tokens"] != report["tokens"]


def test_wide_windows_serve_narrow_requests_and_never_the_other_way_round(
    model: Path, long_prompts: list[list[int]]
) -> None:
    """Requests for one prompt, one after the other, that read it by their own windows."""
    prompt = long_prompts[0]
    asked: list[Any] = [{"kv_level": 3}, {"kv_level": 0}, {"kv_budget": 120}, {"kv_policy": "full"}]
    names = {f"{round_}/{i}": extra for round_ in range(2) for i, extra in enumerate(asked)}
    report = run_scenario(
        model,
        rounds=[[prompt] * len(asked)] * 2,
        engine={**WIDE, "max_num_seqs": 1, "kv_elastic": "off"},
        extra_args=names,
    )
    assert report["faults"] == []
    cached = [report["cached"][f"{round_}/{i}"] for round_ in range(2) for i in range(len(asked))]
    assert cached[:2] == [0, 0], "level 0 would see what level 3 did not"
    assert cached[2] > 0, "a budget of 120 is narrower than both"
    assert cached[3] == 0, "everything is wider than all of them"
    assert min(cached[4:]) > 0
    expect_reference(model, report, [prompt] * len(asked))
    expect_reference(model, report, [prompt] * len(asked), 1)
    starts = [report["passes"][f"1/{i}"][0][1][0] for i in range(len(asked))]
    assert starts == [[0, EVERYTHING]] * len(asked), "the widest prefix there is"


def in_full(plan: Plan, num_tokens: int) -> int:
    """Blocks of a request that keeps everything."""
    return sum(plan.blocks(num_tokens, num_tokens - 1, (None, None, None)).values())


def test_a_hit_whose_surplus_is_gone_is_still_a_hit(model: Path) -> None:
    """A conversation of three turns; between them another request sweeps what nobody holds of the
    pool, but for what the windows of the turn before hold. Answers are short: what they push out of
    a window is swept as well, and a prefix without its whole window is none."""
    first = make_prompts(202, (580,))[0]
    second = [*first, *make_prompts(204, (128,))[0]]
    third = [*second, *make_prompts(205, (130,))[0]]
    engine = {**WIDE, "kv_window": 20, "kv_induction_window": 100}
    engine |= {"max_num_batched_tokens": 128, "max_num_seqs": 1}
    plan = plan_from_dict(run_scenario(model, rounds=[[first]], engine=engine)["plan"])
    blocks = in_full(plan, 720) + 16

    def sweep(seed: int, turn: list[int], spare: int) -> list[int]:
        room = blocks - sum(plan.blocks(len(turn) + 12).values()) - spare
        length = max(n for n in range(400, 1000) if in_full(plan, n + 12) <= room)
        assert in_full(plan, length) > blocks - in_full(plan, len(turn)) + 3, "too little is swept"
        return make_prompts(seed, (length,))[0]

    report = run_scenario(
        model,
        rounds=[[first], [sweep(203, first, 4)], [second], [sweep(206, second, 9)], [third]],
        engine={**engine, "num_gpu_blocks_override": blocks + 1},
    )
    assert (report["faults"], report["held_at_end"]) == ([], 0)
    aligned = [len(turn) // plan.alignment * plan.alignment for turn in (first, second)]
    passes = [report["passes"][f"{round_}/0"][0][1] for round_ in (0, 2, 4)]
    assert report["cached"]["2/0"] == aligned[0], passes
    through = [start for start, windows in passes[1] if min(w or 0 for w in windows) < 0]
    assert through == [aligned[0]], f"read through what is left: {passes}"
    assert report["cached"]["4/0"] == aligned[1], f"what was read so is found again: {passes}"
    for round_, turn in ((0, first), (2, second), (4, third)):
        expect_reference(model, report, [turn], round_)


@pytest.fixture(scope="module")
def crowd(model: Path, long_prompts: list[list[int]]) -> Any:
    """Seven chats, their engine, and the blocks they need in full, by their windows, and at the
    floor."""
    prompts = [prompt[:200] for prompt in long_prompts]
    engine = {**WIDE, "kv_window": 60, "kv_induction_window": 130, "kv_elastic": "all"}
    engine |= {"max_num_batched_tokens": 100, "max_num_seqs": 7}
    roomy = run_scenario(model, rounds=[prompts], engine=engine, max_tokens=100)
    assert {len(changes) for ((_, changes),) in roomy["passes"].values()} == {1}
    assert (roomy["faults"], sum(roomy["events"]["squeezed"].values())) == ([], 0)
    expect_reference(model, roomy, prompts)
    plan = plan_from_dict(roomy["plan"])
    floor = make_ladder(plan.classes, plan.windows, 0.2)[-1]
    ends = [len(prompt) + 100 for prompt in prompts]
    needs = [
        sum(sum(plan.blocks(end, windows=windows).values()) for end in ends)
        for windows in ((None, None, None), plan.windows, floor)
    ]
    return prompts, engine, needs


@pytest.mark.parametrize(
    ("short", "with_"),
    [("surplus", {}), ("floor", {}), ("surplus", {"speculative_config": DRAFTS})],
    ids=["surplus", "floor", "drafts"],
)
def test_running_requests_are_squeezed(
    model: Path, crowd: Any, short: str, with_: dict[str, Any]
) -> None:
    """First of what they hold beyond their windows, then down to the floor."""
    prompts, engine, (most, planned, least) = crowd
    blocks = (most + planned) // 2 if short == "surplus" else (planned + least) // 2 + 12
    report = run_scenario(
        model,
        rounds=[prompts, prompts[:2]],
        engine={**engine, **with_, "num_gpu_blocks_override": blocks},
        max_tokens=100,
    )
    assert (report["faults"], report["held_at_end"], report["preemptions"]) == ([], 0, 0)
    squeezed = report["events"]["squeezed"]
    assert squeezed["surplus"] > 0, (most, planned, least)
    assert (squeezed["floor"] > 0) == (short == "floor"), (squeezed, most, planned, least)
    assert report["left_at_end"] == report["num_blocks"] - 1
    expect_reference(model, report, prompts)
    expect_reference(model, report, prompts[:2], 1)


def test_a_squeezed_request_is_put_back(model: Path, crowd: Any) -> None:
    prompts, engine, (most, planned, _) = crowd
    report = run_scenario(
        model,
        rounds=[prompts],
        engine={**engine, "num_gpu_blocks_override": (most + planned) // 2},
        max_tokens=100,
        preempt_at=[60, 90],
    )
    assert report["faults"] == []
    assert report["preemptions"] > 0 < report["events"]["squeezed"]["surplus"]
    assert max(len(passes) for passes in report["passes"].values()) > 1
    expect_reference(model, report, prompts)
