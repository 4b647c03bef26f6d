"""Budgets in the real engine: windows of single requests, pressure, preemption, prefix hits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbench.families import make_family_model
from testbench.hf_reference import HFReference, rules_of
from testbench.random_profile import write_profile
from testbench.small_requests import POLICY, make_prompts
from tests.engine.scenario import run_scenario
from vllm_headaware.kernels.cpu.support import why_not_native
from vllm_headaware.plan.plan_json import plan_from_dict

pytestmark = pytest.mark.engine

WIDE = {**POLICY, "kv_window": 150, "kv_induction_window": 400, "kv_floor": 0.2}
ASKED: list[dict[str, Any] | None] = [
    {"kv_budget": 120},
    {"kv_policy": "full"},
    None,
    {"kv_budget": 250},
    {"kv_level": 1},
    {"kv_policy": "headaware", "kv_level": 2},
    {"kv_budget": 120, "kv_level": 0},
]


def expect_reference(model: Path, report: Any, prompts: list[list[int]], round_: int = 0) -> None:
    """Every request's tokens are the reference's under the windows that request had."""
    plan = plan_from_dict(report["plan"])
    reference = HFReference(model, rules_of(plan))
    for index, prompt in enumerate(prompts):
        name = f"{round_}/{index}"
        tokens, passes = report["tokens"][name], report["passes"][name]
        ends = [*(start for start, _ in passes[1:]), len(tokens)]
        for (start, changes), end in zip(passes, ends, strict=True):
            reference.rules = rules_of(plan, changes=changes)
            context = [*prompt, *tokens[:start]]
            expected = reference.greedy(context, end - start)
            assert tokens[start:end] == expected, f"{len(context)} tokens under {changes}"


@pytest.fixture(scope="module")
def long_prompts() -> list[list[int]]:
    return make_prompts(211, (800, 333, 450, 61, 700, 555, 820))


@pytest.mark.parametrize("kernels", ["native", "stock"])
def test_a_request_gets_the_budget_it_asks_for(
    model: Path, long_prompts: list[list[int]], kernels: str, tmp_path: Path
) -> None:
    if kernels == "stock":  # a head size that the native kernels do not have
        model = make_family_model(tmp_path, {"model_type": "llama", "head_dim": 80}, model)
        write_profile(model)
    assert bool(why_not_native(80 if kernels == "stock" else 32, 2)) == (kernels == "stock")
    report = run_scenario(
        model,
        rounds=[long_prompts],
        engine={**WIDE, "max_num_batched_tokens": 100, "max_num_seqs": 7},
        extra_args={f"0/{index}": extra for index, extra in enumerate(ASKED)},
    )
    assert report["faults"] == []
    assert report["held_at_end"] == 0
    windows = [tuple(report["windows"][f"0/{index}"]) for index in range(len(ASKED))]
    plan = plan_from_dict(report["plan"])
    assert windows[1] == (None, None, None)
    assert windows[2] == plan.windows
    assert windows[0] == windows[6] != plan.windows
    assert windows[0][0] is not None, "this budget caps retrieval heads too"
    assert len(set(windows)) == 6
    expect_reference(model, report, long_prompts)


def test_pressure_tightens_and_nobody_is_preempted(
    model: Path, long_prompts: list[list[int]]
) -> None:
    prompts = [*long_prompts, *make_prompts(212, (640, 97, 910, 500, 33, 777, 850, 420))]
    prompts = [[min(token, 210) for token in prompt] for prompt in prompts]
    plan = plan_from_dict(run_scenario(model, rounds=[prompts[3:4]], engine=WIDE)["plan"])
    need = [sum(plan.blocks(len(prompt) + 12).values()) for prompt in prompts]
    report = run_scenario(
        model,
        rounds=[prompts],
        engine={
            **WIDE,
            "max_num_batched_tokens": 100,
            "max_num_seqs": 15,
            "num_gpu_blocks_override": max(sum(need) // 3, 90),
        },
    )
    assert report["preemptions"] == 0
    assert report["faults"] == []
    assert report["held_at_end"] == 0
    assert report["max_running"] >= 4
    assert report["changes"]["tighten"] > 0
    assert len(set(report["levels"].values())) > 1, report["levels"]
    expect_reference(model, report, prompts)


def test_answers_longer_than_anybody_expected(model: Path, long_prompts: list[list[int]]) -> None:
    """The pool holds two thirds of what all become. By prediction more run at once and some are put
    back; with everything reserved nobody is. The answers are the reference's either way."""
    prompts = [prompt[:90] for prompt in long_prompts[:6]]
    plan = plan_from_dict(run_scenario(model, rounds=[prompts[:1]], engine=WIDE)["plan"])
    predict, reserve = (
        run_scenario(
            model,
            rounds=[prompts],
            engine={
                **{**WIDE, "kv_floor": 1.0, "kv_admission": admission},
                "max_num_batched_tokens": 100,
                "max_num_seqs": 7,
                "num_gpu_blocks_override": 6 * sum(plan.blocks(180).values()) * 2 // 3,
            },
            first_guess=10,
            max_tokens=90,
        )
        for admission in ("predict", "reserve")
    )
    assert predict["preemptions"] > 0 == reserve["preemptions"]
    assert predict["max_running"] > reserve["max_running"]
    for report in (predict, reserve):
        assert (report["faults"], report["held_at_end"]) == ([], 0)
        assert report["left_at_end"] == report["num_blocks"] - 1
    expect_reference(model, predict, prompts)
    assert reserve["tokens"] == predict["tokens"]


def test_windows_hold_through_preemption(model: Path, long_prompts: list[list[int]]) -> None:
    report = run_scenario(
        model,
        rounds=[long_prompts],
        engine={**WIDE, "max_num_batched_tokens": 400, "max_num_seqs": 7},
        extra_args={f"0/{index}": extra for index, extra in enumerate(ASKED)},
        preempt_at=[4, 14],
    )
    assert report["preemptions"] == 2
    assert report["faults"] == []
    assert report["held_at_end"] == 0
    expect_reference(model, report, long_prompts)


@pytest.mark.parametrize("kernels", ["native", "stock"])
def test_a_prompt_is_read_with_wider_windows(
    model: Path, long_prompts: list[list[int]], kernels: str, tmp_path: Path
) -> None:
    """With windows of single requests, preemption in the midst of an answer, and prefix hits."""
    if kernels == "stock":
        model = make_family_model(tmp_path, {"model_type": "llama", "head_dim": 80}, model)
        write_profile(model)
    engine = {**POLICY, "kv_prefill_window": 300, "max_num_batched_tokens": 100, "max_num_seqs": 7}
    asked = run_scenario(
        model,
        rounds=[long_prompts],
        engine=engine,
        extra_args={f"0/{index}": extra for index, extra in enumerate(ASKED)},
        preempt_at=[45],
        max_tokens=30,
    )
    plan = plan_from_dict(asked["plan"])
    assert {c.policy.prefill_window for c in plan.classes} == {300}
    assert asked["preemptions"] == 1
    assert (asked["faults"], asked["held_at_end"]) == ([], 0)
    expect_reference(model, asked, long_prompts)

    # What was asked before, what was answered, and more.
    longer = [
        [*prompt, *asked["tokens"][f"0/{index}"], *prompt[:40]]
        for index, prompt in enumerate(long_prompts)
    ]
    again = run_scenario(model, rounds=[long_prompts, longer], engine=engine, max_tokens=30)
    assert (again["faults"], again["held_at_end"]) == ([], 0)
    expect_reference(model, again, long_prompts)
    expect_reference(model, again, longer, 1)
    for index, prompt in enumerate(long_prompts):
        read, answered = (n // plan.alignment * plan.alignment for n in (len(prompt), 30))
        cached = again["cached"][f"1/{index}"]
        # Of a short prompt a window of answers hides nothing.
        assert cached == read if len(prompt) > 100 else read <= cached <= read + answered + 64
    rules = [[replace(rule, prefill_window=0) for rule in row] for row in rules_of(plan)]
    assert HFReference(model, rules).greedy(longer[0], 30) != again["tokens"]["1/0"]


def test_a_server_budget_caps_retrieval_heads(model: Path, long_prompts: list[list[int]]) -> None:
    engine = {k: v for k, v in POLICY.items() if "window" not in k}
    report = run_scenario(
        model, rounds=[long_prompts, long_prompts[:2]], engine={**engine, "kv_budget": 200}
    )
    plan = plan_from_dict(report["plan"])
    assert plan.classes[0].policy.window is not None
    assert 120 < plan.mean_tokens() <= 200 == plan.budget
    assert report["faults"] == []
    assert report["cached"]["1/0"] > 0
    assert report["tokens"]["1/0"] == report["tokens"]["0/0"]
    expect_reference(model, report, long_prompts)
