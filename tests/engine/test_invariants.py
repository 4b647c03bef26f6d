"""The invariants of the architecture against the real engine, on a tiny model.

1 inert without the flag; 2 all heads unlimited = stock; 3 output = reference of the visibility
rule; 4 heads sum up to blocks held; 5 blocks held = plan, at every step; 6 blocks are clean; 7
same request, same tokens. (8, refusals, is in test_refusals.py; ranks are in
test_tensor_parallel.py.)
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from testbench.hf_reference import KERNEL_NOISE, HFReference, rules_of
from testbench.small_requests import POLICY
from tests.engine.scenario import run_scenario
from tests.engine.test_budgets import expect_reference
from vllm_headaware.plan.plan_json import plan_from_dict

pytestmark = pytest.mark.engine


def test_1_without_the_flag_nothing_changes(
    model: Path, prompts: list[list[int]], stock: Any
) -> None:
    bare = run_scenario(model, rounds=[prompts], plugins=False)
    for key in ("tokens", "num_blocks", "block_bytes", "block_sizes", "modules"):
        assert stock[key] == bare[key], key


def test_2_all_heads_unlimited_is_stock(model: Path, prompts: list[list[int]], stock: Any) -> None:
    engine = {**POLICY, "kv_retrieval_share": 1.0}
    unlimited = run_scenario(model, rounds=[prompts], engine=engine)
    assert unlimited["modules"] != stock["modules"]
    assert unlimited["tokens"] == stock["tokens"]
    assert unlimited["faults"] == []


def test_3_output_is_the_reference_of_the_rule(
    model: Path, prompts: list[list[int]], together: Any, stock: Any
) -> None:
    plan = plan_from_dict(together["plan"])
    counts = {tuple(len(own) for own in plan.heads(layer)) for layer in range(4)}
    assert len(counts) > 1, "the profile should give layers different head counts"
    reference = HFReference(model, rules_of(plan))
    for index, prompt in enumerate(prompts):
        expected = reference.greedy(prompt, 12)
        assert together["tokens"][f"0/{index}"] == expected, f"prompt of {len(prompt)} tokens"
    assert together["tokens"] != stock["tokens"], "the rule should matter on this model"


@pytest.mark.parametrize("dtypes", [("int8",) * 3, ("k8v4",) * 3, ("int4", "int8", "float16")])
def test_3_quantised_output_is_the_reference_of_the_formats(
    model: Path, prompts: list[list[int]], together: Any, dtypes: tuple[str, ...]
) -> None:
    names = ("kv_retrieval_dtype", "kv_induction_dtype", "kv_local_dtype")
    engine = {
        **POLICY,
        **dict(zip(names, dtypes, strict=True)),
        "max_num_batched_tokens": 100,
        "max_num_seqs": 17,
    }
    report = run_scenario(model, rounds=[prompts, prompts[-2:]], engine=engine)
    assert report["faults"] == []
    assert report["held_at_end"] == 0
    plan = plan_from_dict(report["plan"])
    assert tuple(c.policy.dtype for c in plan.classes) == dtypes
    assert report["block_bytes"] == plan.block_bytes < together["block_bytes"]
    # A number half way between two steps may be rounded either way, so tokens need not be equal:
    # every token must be one the reference finds as likely as its own first choice. Steps of 4 bits
    # are wide: what a reference finds there varies by some hundredths when it is disturbed by as
    # little as the kernels may be off, so disturbed ones are asked, too.
    references, bound = [HFReference(model, rules_of(plan))], 0.02
    if {"int4", "k8v4"} & set(dtypes):
        torch.manual_seed(0)
        references += [HFReference(model, rules_of(plan), noise=KERNEL_NOISE)] * 16
        bound = 0.05
    shorter = tuple(c.policy.window and c.policy.window - c.block_tokens for c in plan.classes)
    of_another_rule = HFReference(model, rules_of(plan, shorter))
    wrong = 0.0
    for index, prompt in enumerate(prompts):
        tokens = report["tokens"][f"0/{index}"]
        lags = torch.stack([reference.lags(prompt, tokens) for reference in references])
        assert lags.amin(0).max() < bound, f"prompt of {len(prompt)} tokens"
        wrong = max(wrong, of_another_rule.lags(prompt, tokens).max().item())
    assert wrong > 10 * bound, "windows a block shorter should be told apart"
    for index, again in enumerate((len(prompts) - 2, len(prompts) - 1)):
        assert report["cached"][f"1/{index}"] > 0
        assert report["tokens"][f"1/{index}"] == report["tokens"][f"0/{again}"]


def test_4_and_5_blocks_are_the_plan_at_every_step(together: Any) -> None:
    assert together["faults"] == []
    assert together["own_short"] == 0, "sums that are kept are what a recount gives"
    assert together["left_at_end"] == together["num_blocks"] - 1
    assert together["steps_checked"] > 100
    assert together["max_running"] > 4
    assert together["held_at_end"] == 0
    assert together["block_bytes"] == together["planned_block_bytes"]


def test_6_a_block_is_clean_for_its_next_owner(
    model: Path, prompts: list[list[int]], together: Any
) -> None:
    engine = {**POLICY, "max_num_batched_tokens": 100, "max_num_seqs": 17}
    poisoned = run_scenario(model, rounds=[prompts], engine=engine, poison=True)
    assert poisoned["tokens"] == together["tokens"]


def test_7_alone_and_unchunked(model: Path, prompts: list[list[int]], together: Any) -> None:
    alone = run_scenario(model, rounds=[[prompt] for prompt in prompts], engine=POLICY)
    assert list(alone["tokens"].values()) == [
        together["tokens"][f"0/{index}"] for index in range(len(prompts))
    ]
    assert alone["faults"] == []


def test_7_after_a_prefix_hit(model: Path, prompts: list[list[int]], together: Any) -> None:
    report = run_scenario(model, rounds=[prompts, prompts], engine=POLICY)
    for index in range(len(prompts)):
        assert report["tokens"][f"1/{index}"] == together["tokens"][f"0/{index}"]
    plan = plan_from_dict(report["plan"])
    longest = len(prompts) - 1
    expected = (len(prompts[longest]) - 1) // plan.alignment * plan.alignment
    assert report["cached"][f"1/{longest}"] == expected > 0
    assert report["faults"] == []
    assert report["held_at_end"] == 0


def test_7_after_preemption(model: Path, prompts: list[list[int]], together: Any) -> None:
    engine = {**POLICY, "max_num_batched_tokens": 100, "max_num_seqs": 17}
    report = run_scenario(model, rounds=[prompts], engine=engine, preempt_at=[9, 20, 33])
    assert report["preemptions"] > 1


def test_7_in_a_pool_too_small_for_all(
    model: Path, prompts: list[list[int]], together: Any
) -> None:
    plan = plan_from_dict(together["plan"])
    one = sum(plan.blocks(512).values())
    engine = {
        **POLICY,
        "kv_floor": 1.0,
        "max_model_len": 512,
        "max_num_batched_tokens": 100,
        "max_num_seqs": 17,
        "num_gpu_blocks_override": one + 12,
    }
    report = run_scenario(model, rounds=[prompts], engine=engine)
    assert report["preemptions"] == 0, "what cannot be held to its end waits"
    assert 1 < report["max_running"] < 17
    assert report["passes"] != together["passes"], "some read through less"
    expect_reference(model, report, prompts)
    alike = [
        name for name, passes in report["passes"].items() if passes == together["passes"][name]
    ]
    assert len(alike) > 9
    assert all(report["tokens"][name] == together["tokens"][name] for name in alike)
    assert report["faults"] == []
    assert report["held_at_end"] == 0


def test_7_compiled(model: Path, prompts: list[list[int]], together: Any) -> None:
    engine = {**POLICY, "enforce_eager": False}
    compiled = run_scenario(model, rounds=[prompts], engine=engine)
    assert compiled["tokens"] == together["tokens"]


def test_streamingllm_is_the_rule_for_every_head(model: Path, prompts: list[list[int]]) -> None:
    engine = {
        "kv_policy": "streamingllm",
        "kv_sink": 20,
        "kv_window": 70,
        "kv_local_dtype": "float32",
        "max_num_batched_tokens": 100,
    }
    report = run_scenario(model, rounds=[prompts], engine=engine)
    plan = plan_from_dict(report["plan"])
    assert [c.name for c in plan.classes] == ["local"]
    assert plan.request_bytes(450) < plan.dense_bytes(450)
    reference = HFReference(model, rules_of(plan))
    for index, prompt in enumerate(prompts):
        assert report["tokens"][f"0/{index}"] == reference.greedy(prompt, 12), len(prompt)
    assert report["faults"] == []
    assert report["held_at_end"] == 0
