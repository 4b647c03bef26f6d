"""Methods against the oracle: a plan shows what its rules show; h2o keeps what it should."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from testbench.hf_reference import HFReference, rules_of
from testbench.random_profile import make_profile
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.eval import runner
from vllm_headaware.eval.baselines import streamingllm_at, tokens_per_head
from vllm_headaware.eval.cache import StoredCache
from vllm_headaware.eval.methods import ByRule, HeavyHitters, Method
from vllm_headaware.kernels.reference import UNLIMITED, HeadRule, stored
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.plan.block_sizes import BLOCK_QUANTUM
from vllm_headaware.plan.geometry import read_geometry

OPTIONS = KVPolicyConfig(
    "headaware",
    retrieval_share=0.3,
    induction_share=0.2,
    sink=20,
    window=40,
    induction_window=130,
)


@pytest.fixture(scope="module")
def plan(tiny_model: Path) -> Plan:
    scores = make_profile(tiny_model).scores
    return with_prefill_window(make_plan(OPTIONS, read_geometry(tiny_model, "float32"), scores), 0)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def prompt(num_tokens: int, seed: int = 5) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, 211, (num_tokens,), generator=generator).tolist()


@pytest.fixture(scope="module")
def everything(tiny_model: Path) -> ByRule:
    return ByRule(make_plan(KVPolicyConfig("full"), read_geometry(tiny_model, "float32")))


def continuation_logprobs(
    model: Any, method: Method, ids: list[int], more: list[int]
) -> torch.Tensor:
    ((_, reading),) = runner.read(model, {"": method}, ids)
    return runner.continuation_logprobs(model, method, reading, more)


@pytest.mark.parametrize("num_tokens", [1, 97, 333])
def test_a_plan_shows_what_its_rules_show(
    tiny_model: Path,
    model: Any,
    plan: Plan,
    num_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "CHUNK", 70)
    by_class = {
        "retrieval": UNLIMITED,
        "induction": HeadRule(20, 130, plan.classes[1].block_tokens),
        "local": HeadRule(20, 40, plan.classes[2].block_tokens),
    }
    rules = [[by_class[plan.classes[index].name] for index in row] for row in plan.assignment]
    reference = HFReference(tiny_model, rules)
    ids = prompt(num_tokens)
    expected = reference.greedy(ids, 9)
    assert runner.generate(model, ByRule(plan), ids, 9) == expected
    got = continuation_logprobs(model, ByRule(plan), ids, expected)
    want = reference.logprobs(ids + expected)[num_tokens - 1 : -1]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    if num_tokens > 300:
        assert HFReference(tiny_model).greedy(ids, 9) != expected, "the rules must matter"


def with_prefill_window(plan: Plan, tokens: int) -> Plan:
    policies = [dataclasses.replace(c.policy, prefill_window=tokens) for c in plan.classes]
    classes = zip(plan.classes, policies, strict=True)
    return dataclasses.replace(
        plan, classes=tuple(dataclasses.replace(c, policy=policy) for c, policy in classes)
    )


def test_a_prompt_is_read_with_wider_windows(
    tiny_model: Path, model: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHUNK", 70)
    wide = with_prefill_window(plan, 180)
    ids = prompt(333)
    reference = HFReference(tiny_model, rules_of(wide))
    expected = reference.greedy(ids, 9)
    method = ByRule(wide)
    for _ in range(2):  # a request leaves nothing behind
        assert runner.generate(model, method, ids, 9) == expected
        got = continuation_logprobs(model, method, ids, expected)
        want = reference.logprobs(ids + expected, len(ids))[len(ids) - 1 : -1]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    for other in (0, len(ids) + len(expected)):
        wrong = reference.logprobs(ids + expected, other)[len(ids) - 1 : -1]
        assert (got - wrong).abs().max() > 1e-2, "both windows must matter"


def test_quantised_classes_show(model: Any, tiny_model: Path) -> None:
    ids, more = prompt(200), prompt(17, seed=6)
    geometry = read_geometry(tiny_model, "float32")

    def logprobs(dtype: str) -> torch.Tensor:
        options = KVPolicyConfig("headaware", retrieval_share=1.0, retrieval_dtype=dtype)
        plan = make_plan(options, geometry, make_profile(tiny_model).scores)
        return continuation_logprobs(model, ByRule(plan), ids, more)

    exact = logprobs("float32")
    error = {d: float((logprobs(d) - exact).abs().max()) for d in ("int8", "int4")}
    assert 1e-4 < error["int8"] < error["int4"]


def test_an_answer_ends_where_the_model_ends_it(model: Any, plan: Plan) -> None:
    ids = prompt(50)
    answer = runner.generate(model, ByRule(plan), ids, 6)
    end = answer[3]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [end]
    try:
        got = runner.generate(model, ByRule(plan), ids, 6)
    finally:
        model.generation_config.eos_token_id = before
    assert got == answer[: answer.index(end)]


def attend_by_hand(drawn: torch.Tensor, budget: int) -> set[int]:
    """Indices that h2o keeps of one KV head, from accumulated attention."""
    total = len(drawn)
    latest = set(range(total - budget // 2, total))
    older = sorted(set(range(total)) - latest, key=lambda j: -float(drawn[j]))
    return latest | set(older[: budget - budget // 2])


def test_h2o_keeps_heavy_hitters_and_the_latest(everything: ByRule) -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(1, heads, 30, 8) for heads in (4, 2))
    method = HeavyHitters(9, "float32", everything)
    for begin, end in ((0, 17), (17, 30)):
        method.saw(0, query[:, :, begin:end], key[:, :, :end], 1.0)
    assert bool(method.held[0].all()), "the prompt is computed with everything visible"
    method.prompt_done()
    weights = (
        (query[0].view(2, 2, 30, 8) @ key[0][:, None].transpose(-1, -2))
        .masked_fill(torch.ones(30, 30).triu(1).bool(), float("-inf"))
        .softmax(-1)
    )
    for head in range(2):
        kept = attend_by_hand(weights[head].sum((0, 1)), 9)
        assert set(method.held[0][head].nonzero().flatten().tolist()) == kept


def test_h2o_never_shows_again_what_it_evicted(everything: ByRule) -> None:
    torch.manual_seed(1)
    key, value = torch.randn(1, 2, 60, 8), torch.randn(1, 2, 60, 8)
    method = HeavyHitters(7, "float32", everything)
    method.saw(0, torch.randn(1, 4, 20, 8), key[:, :, :20], 1.0)
    method.prompt_done()
    drawn = method.drawn[0].clone()
    for length in range(21, 61):
        before = method.held[0]
        drawn = torch.cat([drawn, torch.zeros(2, 1)], 1)
        query = torch.randn(1, 4, 1, 8)
        output = method.attend(0, query, key[:, :, :length], value[:, :, :length], 1.0)
        held = torch.cat([before, torch.ones(2, 1, dtype=torch.bool)], 1)
        for head in range(4):
            own = held[head // 2]
            keys, values = key[0, head // 2, :length][own], value[0, head // 2, :length][own]
            weights = (query[0, head] @ keys.T).softmax(-1)
            torch.testing.assert_close(output[0, head], weights @ values, atol=1e-5, rtol=0)
            drawn[head // 2, own] += weights[0]
        now = method.held[0]
        for head in range(2):
            kept = attend_by_hand(drawn[head].masked_fill(~held[head], -1.0), 7)
            assert set(now[head].nonzero().flatten().tolist()) == kept
        assert bool((now[:, :-1] <= before).all())
        assert bool(now[:, -3:].all())


def test_h2o_within_its_budget_is_the_full_cache(model: Any, everything: ByRule) -> None:
    ids = prompt(90)
    want = runner.generate(model, everything, ids, 8)
    method = HeavyHitters(98, "float32", everything)
    assert runner.generate(model, method, ids, 8) == want
    assert runner.generate(model, method, ids, 8) == want, "a new request starts afresh"
    assert runner.generate(model, HeavyHitters(10, "float32", everything), ids, 8) != want


def test_h2o_evicts_at_every_token_of_a_given_continuation(model: Any, everything: ByRule) -> None:
    ids, method = prompt(90), HeavyHitters(10, "float32", everything)
    written = runner.generate(model, method, ids, 14)
    logprobs = continuation_logprobs(model, method, ids, written)
    assert logprobs.argmax(-1).tolist() == written


def test_methods_that_share_a_reading_get_what_each_gets_alone(
    model: Any, everything: ByRule, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHUNK", 50)
    methods: dict[str, Method] = {
        "full": everything,
        "own": ByRule(plan),
        "h2o": HeavyHitters(60, "int8", everything),
        # A window as wide as the prompt is everything.
        "all of it": ByRule(with_prefill_window(plan, 170)),
        "more": ByRule(with_prefill_window(streamingllm_at(plan, OPTIONS, 150), 500)),
        "not all": ByRule(with_prefill_window(plan, 169)),
    }
    ids, more = prompt(170), prompt(20, seed=6)
    alone = {n: continuation_logprobs(model, m, ids, more) for n, m in methods.items()}
    steps: list[int] = []
    step = runner._step

    def counted(model: Any, cache: StoredCache, tokens: list[int], keep: int) -> torch.Tensor:
        steps.append(len(tokens))
        return step(model, cache, tokens, keep)

    monkeypatch.setattr(runner, "_step", counted)
    seen: list[str] = []
    for name, reading in runner.read(model, methods, ids):
        seen.append(name)
        got = runner.continuation_logprobs(model, methods[name], reading, more)
        torch.testing.assert_close(got, alone[name], atol=0, rtol=0)
    assert seen == ["full", "h2o", "all of it", "more", "own", "not all"]
    assert sum(n for n in steps if n in (50, 20)) == 3 * 170, "three readings of six methods"


def test_what_is_stored_is_rounded_once_and_moves_between_formats() -> None:
    torch.manual_seed(2)
    key, value = torch.randn(1, 2, 5, 32), torch.randn(1, 2, 5, 32)
    cache = StoredCache([["float32", "int4"]])
    cache.update(key[:, :, :3], value[:, :, :3], 0)
    keys, values = cache.update(key[:, :, 3:], value[:, :, 3:], 0)
    torch.testing.assert_close(keys[:, 0], key[:, 0], atol=0, rtol=0)
    torch.testing.assert_close(values[:, 1], stored(value[:, 1], "int4"))
    other = cache.copy_to([["int8", "float32"]])
    torch.testing.assert_close(other.held(0)[0][:, 0], stored(key[:, 0], "int8"))
    other.update(key, value, 0)
    assert cache.held(0)[0].shape[2] == 5, "the copy grew alone"


def test_a_baseline_never_needs_more_than_the_whole_request(plan: Plan) -> None:
    baseline = streamingllm_at(plan, OPTIONS, 97)
    assert baseline.request_bytes(97) < plan.request_bytes(97), "the other case"
    assert (baseline.classes[0].policy.window or 0) >= 97


@pytest.mark.parametrize("num_tokens", [333, 700, 2048])
def test_baselines_get_at_least_the_bytes_and_no_block_more(plan: Plan, num_tokens: int) -> None:
    wanted = plan.request_bytes(num_tokens)
    baseline = streamingllm_at(plan, OPTIONS, num_tokens)
    assert baseline.policy == "streamingllm"
    assert baseline.request_bytes(num_tokens) >= wanted
    window = baseline.classes[0].policy.window
    assert window is not None
    if window > BLOCK_QUANTUM:
        smaller = KVPolicyConfig("streamingllm", sink=20, window=window - BLOCK_QUANTUM)
        assert make_plan(smaller, plan.geometry).request_bytes(num_tokens) < wanted
    held = tokens_per_head(baseline, num_tokens)
    dense = make_plan(KVPolicyConfig("full"), plan.geometry).dense_bytes(held)
    assert dense == baseline.request_bytes(num_tokens)


def test_h2o_refuses_a_budget_it_cannot_split(everything: ByRule) -> None:
    with pytest.raises(ValueError, match="at least 2 tokens per KV head, got 1"):
        HeavyHitters(1, "float32", everything)
