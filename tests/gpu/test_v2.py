"""The real engine on model runner V2, what GPUs run, with the Triton kernels in the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbench.random_profile import write_profile
from testbench.small_requests import POLICY, make_prompts
from tests.engine.scenario import run_scenario
from tests.engine.test_budgets import expect_reference
from tests.engine.test_compaction import expect_what_was_kept
from tests.reference.tiny import TINY_3_KV_HEADS, make_tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.gpu]
Record = Callable[[str, object], None]

LENGTHS = (1, 33, 60, 97, 161, 210)
ENGINE: dict[str, Any] = {
    **POLICY,
    "max_num_batched_tokens": 100,
    "max_num_seqs": 6,
    "max_model_len": 512,
    "num_gpu_blocks_override": 120,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 layers of 9 query heads and 3 KV heads, head size 64."""
    shape = replace(TINY_3_KV_HEADS, num_layers=2)
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), shape)
    write_profile(folder)
    return folder


PROMPTS = make_prompts(211, LENGTHS)
KINDS = {"int8": 0.02, "k8v4": 0.05, "int4": 0.1, "bfloat16": 0.001}
"""KV formats, and how far log probabilities may differ: native kernels round queries too."""
FULL, PLAN = {"kv_policy": "full"}, None
ASKED = [{"kv_level": 1}, {"kv_budget": 120}, PLAN, FULL, {"kv_level": 2}, PLAN]
"""Budgets of single requests."""


def put_back_twice(reading: int) -> dict[str, Any]:
    return {
        "rounds": [PROMPTS],
        "engine": {**ENGINE, "kv_floor": 0.2, "kv_prefill_window": reading},
        "extra_args": {f"0/{index}": extra for index, extra in enumerate(ASKED)},
        "preempt_at": [4, 9],
    }


def in_format(kind: str, runner: str) -> dict[str, Any]:
    classes = {f"kv_{c}_dtype": kind for c in ("retrieval", "induction", "local")}
    options = {"rounds": [PROMPTS[2:]], "engine": {**ENGINE, **classes}, "runner": runner}
    return {**options, "max_tokens": 5, "logprobs": 8}


KEPT: dict[str, Any] = {"kv_retrieval_keep": 0.4, "kv_retrieval_recent": 32}
ONE_CLASS = {k: v for k, v in ENGINE.items() if k[:7] not in ("kv_retr", "kv_indu")}


def moved_in_k8v4(runner: str) -> dict[str, Any]:
    options = in_format("k8v4", runner)
    return {**options, "rounds": [PROMPTS[4:]], "engine": {**options["engine"], **KEPT}}


SCENARIOS: dict[str, dict[str, Any]] = {
    # Poisoned blocks, prompts in chunks of at most 100 tokens, then all of them once more.
    "chunks, then hits": {"rounds": [PROMPTS, PROMPTS], "engine": ENGINE, "poison": True},
    "own windows": put_back_twice(0),
    "own windows, wider while reading": put_back_twice(100),
    **{f"{kind}, {runner}": in_format(kind, runner) for kind in KINDS for runner in ("v1", "v2")},
    "moved": {"rounds": [PROMPTS[4:]], "engine": {**ENGINE, **KEPT}},
    **{f"moved, {runner}": moved_in_k8v4(runner) for runner in ("v1", "v2")},
    "one class": {"rounds": [PROMPTS[3:]], "engine": {**ONE_CLASS, "kv_policy": "streamingllm"}},
    "two classes": {"rounds": [PROMPTS[3:]], "engine": {**ENGINE, "kv_induction_share": 0.0}},
}


@pytest.fixture(scope="module")
def reports(model: Path) -> Iterator[dict[str, Future[Any]]]:
    """Of all scenarios; two run at a time, as one process interprets on one core."""
    with ThreadPoolExecutor(2) as pool:

        def submit(options: dict[str, Any]) -> Future[Any]:
            return pool.submit(run_scenario, model, **{"runner": "v2", "max_tokens": 6, **options})

        yield {name: submit(options) for name, options in SCENARIOS.items()}


def checked_tokens(model: Path, report: Any, prompts: list[list[int]], round_: int = 0) -> int:
    """How many tokens were compared, and were the reference's."""
    expect_reference(model, report, prompts, round_)
    assert report["faults"] == []
    assert report["held_at_end"] == 0
    return sum(len(report["tokens"][f"{round_}/{index}"]) for index in range(len(prompts)))


def test_chunked_prefill_and_prefix_hits(
    model: Path, reports: dict[str, Future[Any]], record_property: Record
) -> None:
    report = reports["chunks, then hits"].result()
    checked = [checked_tokens(model, report, PROMPTS, round_) for round_ in (0, 1)]
    assert checked == [36, 36]
    assert sum(report["cached"].values()) > 0
    record_property("engine_tokens_checked", sum(checked))


@pytest.mark.parametrize("name", ["own windows", "own windows, wider while reading"])
def test_own_windows_and_preemption(
    model: Path, reports: dict[str, Future[Any]], name: str, record_property: Record
) -> None:
    """All are put back twice, and come again in slots that others had."""
    report = reports[name].result()
    assert report["preemptions"] == 2
    assert len({tuple(w) for w in report["windows"].values()}) >= 4
    assert checked_tokens(model, report, PROMPTS) == 36
    record_property("engine_tokens_checked", 36)


@pytest.mark.parametrize("kind", KINDS)
def test_both_runners_alike(
    reports: dict[str, Future[Any]], kind: str, record_property: Record
) -> None:
    """The native CPU kernels under V1 and the Triton kernels under V2: log probabilities, up to
    where the most likely token is another."""
    compared = compare_runners(reports, kind, KINDS[kind])
    record_property("engine_tokens_checked", compared)


def compare_runners(reports: dict[str, Future[Any]], name: str, bound: float) -> int:
    """Tokens whose log probabilities were compared, and are as near as that."""
    v1, v2 = (reports[f"{name}, {runner}"].result() for runner in ("v1", "v2"))
    assert [side["held_at_end"] for side in (v1, v2)] == [0, 0]
    compared = 0
    for name, tokens in v1["tokens"].items():
        for at, token in enumerate(tokens):
            ours, theirs = v2["logprobs"][name][at], v1["logprobs"][name][at]
            near = pytest.approx(theirs[str(token)], abs=bound)
            assert ours[str(token)] == near, (name, at)
            compared += 1
            if v2["tokens"][name][at] != token:
                break
    assert compared >= 2 * len(v1["tokens"])
    return compared


def test_tokens_move_together(
    model: Path, reports: dict[str, Future[Any]], record_property: Record
) -> None:
    """What each head keeps of a prompt, out of the blocks of the Triton kernels and into others."""
    report = reports["moved"].result()
    assert (report["faults"], report["held_at_end"]) == ([], 0)
    assert {move["num_tokens"] for move in report["moved"]} == {*LENGTHS[4:]}
    expect_what_was_kept(model, report, PROMPTS[4:])
    assert all(reports[f"moved, {runner}"].result()["moved"] for runner in ("v1", "v2"))
    compared = compare_runners(reports, "moved", KINDS["k8v4"])
    record_property("engine_tokens_checked", compared + 12)


@pytest.mark.parametrize("name", ["one class", "two classes"])
def test_fewer_classes(
    model: Path, reports: dict[str, Future[Any]], name: str, record_property: Record
) -> None:
    """streamingllm has one class; without induction heads there are two."""
    assert checked_tokens(model, reports[name].result(), PROMPTS[3:]) == 18
    record_property("engine_tokens_checked", 18)
