"""Prompts of which retrieval heads keep a share, in the real engine, against the plain-torch
reference that sees what each head chose."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from testbench.hf_reference import HeadRules, HFReference, rules_of
from testbench.random_profile import make_profile
from testbench.small_requests import POLICY, make_prompts
from tests.engine.ranks import generate_on_ranks
from tests.engine.scenario import run_scenario
from tests.engine.test_tensor_parallel import UNEVEN_SEED
from vllm_headaware.kernels.reference import HeadRule
from vllm_headaware.plan import Plan
from vllm_headaware.plan.plan_json import plan_from_dict
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.locate import FILE_NAME
from vllm_headaware.profile.token_weights import unpack

pytestmark = pytest.mark.engine

LENGTHS = (800, 333, 450, 61, 700, 555, 820)
RECENT = 64
COMPACT = {**POLICY, "max_num_batched_tokens": 100, "max_num_seqs": 7}
COMPACT |= {"kv_retrieval_keep": 0.4, "kv_retrieval_recent": RECENT}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return make_prompts(201, LENGTHS)


def kept_of(report: Any, num_tokens: int) -> dict[tuple[int, int], list[int]]:
    """What every (layer, head) kept of a request that had so many tokens."""
    kept = next(move["kept"] for move in report["moved"] if move["num_tokens"] == num_tokens)
    places = (place.split(".") for place in kept)
    return {
        (int(layer), int(head)): tokens
        for (layer, head), tokens in zip(places, kept.values(), strict=True)
    }


def keep_only(
    rules: list[list[HeadRule]], start: int, kept: dict[tuple[int, int], list[int]]
) -> None:
    """From a position on, heads see of the tokens before it those that they kept."""
    for (layer, head), tokens in kept.items():
        own = rules[layer][head]
        rules[layer][head] = dataclasses.replace(own, kept=((start, tuple(tokens)),))


def rules_under(plan: Plan, report: Any, changes: Any) -> HeadRules:
    """The rules of a request whose windows changed so: where its tokens moved together, each head
    sees those that it kept."""
    moves = [start for start, windows in changes if (windows[0] or 0) < 0]
    plain = [(start, [w if (w or 1) > 0 else None for w in own]) for start, own in changes]
    rules = [list(row) for row in rules_of(plan, changes=plain)]
    for start in moves[:1]:
        keep_only(rules, start, kept_of(report, start))
    return rules


def expect_what_was_kept(
    model: Path, report: Any, prompts: list[list[int]], round_: int = 0
) -> None:
    plan = plan_from_dict(report["plan"])
    reference = HFReference(model, rules_of(plan))
    for index, prompt in enumerate(prompts):
        tokens = report["tokens"][f"{round_}/{index}"]
        passes = report["passes"][f"{round_}/{index}"]
        ends = [*(start for start, _ in passes[1:]), len(tokens)]
        for (start, changes), end in zip(passes, ends, strict=True):
            reference.rules = rules_under(plan, report, changes)
            expected = reference.greedy([*prompt, *tokens[:start]], end - start)
            assert tokens[start:end] == expected, f"{len(prompt)} tokens under {changes}"


def expect_sound_moves(plan: Plan, report: Any) -> None:
    """As many tokens of every head, its own, the latest among them and no sink."""
    own = plan.classes[0]
    sinks = own.sink_blocks * own.block_tokens
    chosen = set()
    for move in report["moved"]:
        count = move["num_tokens"] + (own.kept_window(move["num_tokens"]) or 0)
        for tokens in move["kept"].values():
            assert len(tokens) == len(set(tokens)) == count
            assert tokens == sorted(tokens)
            assert tokens[0] >= sinks
            assert tokens[-RECENT:] == list(range(move["num_tokens"]))[-RECENT:]
            chosen.add((move["num_tokens"], tuple(tokens)))
        assert len(move["kept"]) == own.num_heads
    heads = len(report["moved"]) * own.num_heads
    assert len(chosen) > heads // 2, "heads choose for themselves"


def best_tokens(
    model: Path, plan: Plan, profile: HeadProfile, prompt: list[int]
) -> dict[tuple[int, int], list[int]]:
    """What retrieval heads should keep of a prompt, from keys and values of Hugging Face's."""
    shape = profile.model.num_layers, profile.model.num_kv_heads, profile.model.head_size
    weights, own = unpack(profile.token_scores, *shape).double(), plan.classes[0]
    hf = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        cache = hf(torch.tensor([prompt]), use_cache=True).past_key_values
        positions = torch.arange(len(prompt))[None]
        cos, sin = hf.model.rotary_emb(torch.zeros(1), positions)
    sinks, half = own.sink_blocks * own.block_tokens, shape[2] // 2
    kept = {}
    for layer in range(shape[0]):
        for head in plan.heads(layer)[0]:
            rotated, value = (
                x[0, head].double() for x in (cache.layers[layer].keys, cache.layers[layer].values)
            )
            # Turned back by the angle of its position: the rotation of minus that angle.
            turned = torch.cat([-rotated[:, half:], rotated[:, :half]], -1)
            key = rotated * cos[0] - turned * sin[0]
            lengths = (key[:, :half] ** 2 + key[:, half:] ** 2).sqrt()
            numbers = torch.cat([key, value, key**2, value**2, lengths], -1)
            scores = numbers @ weights[layer, head]
            newest = set(range(len(prompt) - RECENT, len(prompt)))
            best = [
                int(t)
                for t in scores.argsort(descending=True)
                if t >= sinks and int(t) not in newest
            ]
            count = len(prompt) + (own.kept_window(len(prompt)) or 0) - RECENT
            kept[layer, head] = sorted({*best[:count], *newest})
    return kept


def test_heads_keep_their_own_tokens(model: Path, prompts: list[list[int]]) -> None:
    report = run_scenario(model, rounds=[prompts, prompts[:2]], engine=COMPACT, max_tokens=40)
    assert (report["faults"], report["held_at_end"]) == ([], 0)
    plan = plan_from_dict(report["plan"])
    long = {n for n in LENGTHS if plan.classes[0].kept_window(n)}
    assert {move["num_tokens"] for move in report["moved"]} == long != set()
    assert report["events"]["squeezed"]["compacted"] > 0
    expect_sound_moves(plan, report)
    for prompt in prompts[:1]:
        expected = best_tokens(model, plan, HeadProfile.load(model / FILE_NAME), prompt)
        for (layer, head), tokens in expected.items():
            chosen = kept_of(report, len(prompt))[layer, head]
            assert len({*chosen} - {*tokens}) <= 1, "but for a tie"
    expect_what_was_kept(model, report, prompts)
    assert report["cached"]["1/0"] > 0, "originals stay in the prefix cache"
    again = [report["tokens"][f"1/{index}"] for index in range(2)]
    assert again == [report["tokens"][f"0/{index}"] for index in range(2)]
    everything = run_scenario(
        model, rounds=[prompts], engine={**COMPACT, "kv_retrieval_keep": 1.0}, max_tokens=40
    )
    assert everything["moved"] == []
    assert everything["tokens"] != {n: t for n, t in report["tokens"].items() if n[0] == "0"}


@pytest.mark.parametrize("caching", [True, False])
def test_short_of_blocks(model: Path, prompts: list[list[int]], caching: bool) -> None:
    """Requests are put back and read again; blocks are written to where they are if none is free,
    and leave the prefix cache for that."""
    engine = {**COMPACT, "max_num_seqs": 3, "enable_prefix_caching": caching}
    engine["num_gpu_blocks_override"] = 80
    report = run_scenario(
        model, rounds=[prompts], engine=engine, max_tokens=40, preempt_at=[12, 30, 31]
    )
    assert (report["faults"], report["held_at_end"]) == ([], 0)
    assert report["preemptions"] > 0
    expect_sound_moves(plan_from_dict(report["plan"]), report)
    expect_what_was_kept(model, report, prompts)


def test_requests_that_want_everything_keep_it(model: Path, prompts: list[list[int]]) -> None:
    asked: dict[str, Any] = {"0/0": {"kv_policy": "full"}, "0/1": {"kv_budget": 120}}
    few = [prompts[0], prompts[4], prompts[6]]
    report = run_scenario(model, rounds=[few], engine=COMPACT, extra_args=asked)
    assert (report["faults"], report["held_at_end"]) == ([], 0)
    assert [move["num_tokens"] for move in report["moved"]] == [len(few[2])]
    expect_what_was_kept(model, report, few)


def test_two_ranks(model: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    """Every rank moves its own heads' tokens, by their own scores."""
    path = tmp_path / "profile.json"
    profile = make_profile(model, UNEVEN_SEED)
    profile.save(path)
    long = [prompts[0], prompts[4]]
    engine = {**COMPACT, "kv_head_profile": str(path), "tensor_parallel_size": 2}
    report: Any = generate_on_ranks(model, long, engine)
    plan = plan_from_dict(report["plan"])
    for prompt, tokens in zip(long, report["tokens"], strict=True):
        rules = [
            list(row)
            for row in rules_of(
                plan, changes=[(0, [None] * len(plan.classes)), (len(prompt), plan.windows)]
            )
        ]
        keep_only(rules, len(prompt), best_tokens(model, plan, profile, prompt))
        assert tokens == HFReference(model, rules).greedy(prompt, 12)
