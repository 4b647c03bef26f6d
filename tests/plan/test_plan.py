"""The plan: classes from shares, the one byte formula, spare room, and ranks."""

import itertools
import random
from typing import Any

import pytest

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.plan.block_sizes import MAX_ALIGNMENT
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.plan.plan_json import plan_from_dict, plan_to_dict
from vllm_headaware.policies.headaware import RETRIEVAL, HeadAware

DEMO = ModelGeometry(30, 9, 3, 64, "float32", 8192)
LARGE = ModelGeometry(32, 32, 8, 128, "bfloat16", 131072)


def random_scores(geometry: ModelGeometry, seed: int = 0) -> dict[str, list[list[float]]]:
    """As a profile has them."""
    rng = random.Random(seed)
    shape = range(geometry.num_layers), range(geometry.num_kv_heads)

    def scores() -> list[list[float]]:
        return [[rng.random() for _ in shape[1]] for _ in shape[0]]

    return {name: scores() for name in ("gate", "answer", "induction")}


def plan_for(geometry: ModelGeometry, tp: int = 1, **options: Any) -> Plan:
    return make_plan(KVPolicyConfig("headaware", **options), geometry, random_scores(geometry), tp)


def visible_blocks(n: int, processed: int, sink: int, window: int, block: int) -> int:
    """Blocks that hold a token some later query may see, or that is still being computed."""
    sinks = -(-sink // block) * block
    start = max(processed - window + 1, 0) // block * block
    return len({j // block for j in range(n) if j < sinks or j >= start})


@pytest.mark.parametrize("geometry", [DEMO, LARGE], ids=["demo", "8B"])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_shares_and_waste(geometry: ModelGeometry, share: float) -> None:
    plan = plan_for(geometry, retrieval_share=share)
    counts = {c.name: c.num_heads for c in plan.classes}
    total = geometry.num_heads_total
    assert sum(counts.values()) == total
    assert counts["retrieval"] >= share * total
    assert plan.alignment <= MAX_ALIGNMENT
    assert plan.request_waste(8192) < 0.05
    assert plan.request_bytes(8192) < plan.dense_bytes(8192)


def test_the_byte_formula_by_hand() -> None:
    plan = plan_for(DEMO)
    widest = max(c.num_heads * c.block_tokens for c in plan.classes)
    assert plan.block_bytes == widest * 2 * 64 * 4
    blocks = plan.blocks(5000)
    assert plan.request_bytes(5000) == plan.block_bytes * sum(blocks.values())
    for c in plan.classes:
        if c.policy.window is None:
            assert blocks[c.name] == -(-5000 // c.block_tokens)
        else:
            expected = visible_blocks(5000, 4999, c.policy.sink, c.policy.window, c.block_tokens)
            assert blocks[c.name] == expected


def test_blocks_at_any_length_and_progress() -> None:
    plan = plan_for(DEMO, sink=50, window=97, induction_window=333)
    lengths = (1, 2, 31, 32, 33, 97, 128, 500, 1000, 1025)
    for c, n in itertools.product(plan.classes[1:], lengths):
        assert c.policy.window is not None
        for processed in {0, n // 3, n - 1}:
            expected = visible_blocks(n, processed, c.policy.sink, c.policy.window, c.block_tokens)
            assert c.blocks(n, processed) == expected, (c, n, processed)


def test_blocks_while_a_prompt_is_read() -> None:
    plan = plan_for(DEMO, sink=50, window=97, induction_window=333, prefill_window=200)
    for c, n in itertools.product(plan.classes[1:], (97, 128, 500, 1000)):
        assert c.policy.window is not None
        for processed, num_prompt in itertools.product({0, n // 3, n - 1}, (0, n // 3, n)):
            reading = processed < num_prompt
            window = max(c.policy.window, 200) if reading else c.policy.window
            expected = visible_blocks(n, processed, c.policy.sink, window, c.block_tokens)
            assert c.blocks(n, processed, num_prompt) == expected, (c, n, processed, num_prompt)
    assert plan.reading_bytes(1000) > plan.request_bytes(1000)
    assert plan.request_bytes(1000) == plan_for(
        DEMO, sink=50, window=97, induction_window=333
    ).request_bytes(1000), "blocks are as small as without"
    assert plan_from_dict(plan_to_dict(plan)) == plan


def test_head_bytes_sum_to_blocks() -> None:
    plan = plan_for(LARGE, tp=2)
    blocks = {c.name: 7 + i for i, c in enumerate(plan.classes)}
    total = sum(
        plan.head_bytes(i, blocks[plan.classes[i].name]) for r in plan.assignment for i in r
    )
    assert total == pytest.approx(plan.block_bytes * sum(blocks.values()))


def test_better_heads_get_spare_room() -> None:
    plan = plan_for(DEMO)
    for index, c in enumerate(plan.classes[:-1]):
        assert (c.num_heads + 1) * c.block_tokens * DEMO.head_token_bytes > plan.block_bytes, index


@pytest.mark.parametrize(("prefill_window", "score"), [(0, "gate"), (2048, "answer")])
def test_retrieval_heads_are_the_best(prefill_window: int, score: str) -> None:
    plan = plan_for(DEMO, prefill_window=prefill_window)
    gate = random_scores(DEMO)[score]
    ranked = sorted(
        ((y, h) for y in range(30) for h in range(3)), key=lambda at: -gate[at[0]][at[1]]
    )
    best = ranked[: int(0.25 * 90)]
    assert all(plan.assignment[y][h] == 0 for y, h in best)
    middle = [at for at in ranked if plan.assignment[at[0]][at[1]] == 1]
    follow = ranked[ranked.index(middle[0]) :][: len(middle)]
    assert (middle == follow) == (score == "answer"), "else by the induction score"


@pytest.mark.parametrize(
    ("heads", "share", "kept"),
    [(3, 0.24, 2), (3, 1.0, 3), (3, 0.0, 0), (2, 0.24, 1), (11, 0.1, 2), (12, 0.05, 1)],
)
def test_of_few_heads_two_keep_everything(heads: int, share: float, kept: int) -> None:
    config = KVPolicyConfig("headaware", retrieval_share=share)
    geometry = ModelGeometry(heads, 4, 1, 64, "float32", 8192)
    _, classes, _ = HeadAware().classify(config, (heads, 1), random_scores(geometry))
    assert [index for row in classes for index in row].count(RETRIEVAL) == kept


def test_ties_are_settled_the_same_way() -> None:
    flat = {n: [[1.0] * 3] * 30 for n in ("answer", "induction")}
    plans = [make_plan(KVPolicyConfig("headaware"), DEMO, flat) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].assignment[0] == (0, 0, 0)


@pytest.mark.parametrize(("geometry", "tp"), [(DEMO, 3), (LARGE, 2), (LARGE, 8)])
def test_every_rank_has_every_class(geometry: ModelGeometry, tp: int) -> None:
    plan = plan_for(geometry, tp=tp)
    for rank in range(tp):
        assert all(plan.num_heads(index, rank) for index in range(len(plan.classes)))
        assert plan.rank_block_bytes(rank) <= plan.block_bytes
    heads = [plan.heads(3, rank) for rank in range(tp)]
    assert sum(len(own) for dealt in heads for own in dealt) == geometry.num_kv_heads


def test_all_heads_unlimited_is_one_class() -> None:
    plan = plan_for(DEMO, retrieval_share=1.0)
    assert [c.name for c in plan.classes] == ["retrieval"]


def test_plans_travel_as_json() -> None:
    import json

    plan = plan_for(LARGE, tp=2)
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan


def test_what_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(HeadAwareError, match="does not divide"):
        plan_for(DEMO, tp=2)
    with pytest.raises(HeadAwareError, match="would have no"):
        plan_for(ModelGeometry(1, 4, 4, 64, "float32", 512), tp=4)
    with pytest.raises(HeadAwareError, match="needs a head profile"):
        make_plan(KVPolicyConfig("headaware"), DEMO, None)


def test_quantised_bytes_by_hand() -> None:
    dtypes: dict[str, Any] = {
        "retrieval_dtype": "int4",
        "induction_dtype": "int8",
        "local_dtype": "float16",
    }
    windows: dict[str, Any] = {"retrieval_share": 0.24, "window": 512, "induction_window": 1024}
    plan = plan_for(DEMO, **dtypes, **windows)
    assert [c.policy.dtype for c in plan.classes] == ["int4", "int8", "float16"]
    # 64 elements of K and of V, and bfloat16 scales: int8 two, int4 two and two lowest values.
    assert [plan.token_bytes(i) for i in range(3)] == [64 + 8, 128 + 4, 256]
    used = [c.num_heads * c.block_tokens * plan.token_bytes(i) for i, c in enumerate(plan.classes)]
    assert plan.block_bytes == max(used)
    assert plan_from_dict(plan_to_dict(plan)) == plan
    assert plan.request_bytes(8192) < plan_for(DEMO, **windows).request_bytes(8192) / 5


def test_what_stays_of_a_prompt_by_hand() -> None:
    plan, whole = plan_for(DEMO, retrieval_keep=0.25, retrieval_recent=500), plan_for(DEMO)
    retrieval, *others = plan.classes
    block, sinks = retrieval.block_tokens, retrieval.sink_blocks
    assert whole.classes[0].kept_window(8000) is None
    assert all(c.kept_window(8000) == c.policy.window for c in others)
    # A quarter of 8,000 tokens, from the block on in which they begin, and the sinks.
    first = 6000 // block
    assert retrieval.kept_window(8000) == -first * block
    held = plan.blocks(8100, windows=plan.kept_windows(8000))["retrieval"]
    assert held == -(-8100 // block) - first + sinks
    assert retrieval.kept_window(500 + (sinks + 1) * block - 1) is None, "too short"
    assert retrieval.kept_window(500 + (sinks + 1) * block) == -(sinks + 1) * block
    assert plan.request_bytes(8000) < 0.65 * whole.request_bytes(8000)
    assert plan.reading_bytes(8000) == whole.reading_bytes(8000)
    assert plan_from_dict(plan_to_dict(plan)) == plan


def test_heavy_hitters_hold_their_budget() -> None:
    plan = make_plan(KVPolicyConfig("h2o", budget=1000, sink=40, local_dtype="float16"), DEMO)
    (heavy,) = plan.classes
    assert plan.mean_tokens() <= 1000 == plan.budget == heavy.policy.heavy_hitters
    assert plan.mean_tokens() > 1000 - heavy.block_tokens
    assert heavy.block_tokens == 32
    assert plan.blocks(8000)["heavy_hitters"] in (
        heavy.heavy_hitter_blocks,
        heavy.heavy_hitter_blocks + 1,
    )
    assert plan.blocks(97)["heavy_hitters"] == -(-97 // heavy.block_tokens)
    for n in range(1, 3000, 7):
        assert heavy.blocks(n, max(n - 64, 0)) <= heavy.most_blocks(3000, None, 64)
    assert plan_from_dict(plan_to_dict(plan)) == plan
    with pytest.raises(HeadAwareError, match="h2o needs --kv-budget"):
        make_plan(KVPolicyConfig("h2o"), DEMO)
