"""The census counts shared blocks once, holes never, and only the tokens that are there."""

from types import SimpleNamespace
from typing import Any

from tests.plan.test_plan import DEMO, plan_for
from vllm_headaware.cache.census import Census, Events, holding_of, take_census
from vllm_headaware.cache.regimes import Regimes

PLAN = plan_for(DEMO)
NULL = SimpleNamespace(block_id=0, is_null=True)


def block(number: int) -> Any:
    return SimpleNamespace(block_id=number, is_null=False)


def scheduler(
    tables: list[dict[str, list[Any]]], lengths: dict[str, int], free: int, num_prompt: int = 0
) -> Any:
    """What a census looks at of a vLLM scheduler, with a block table per head class."""
    return SimpleNamespace(
        running=[
            SimpleNamespace(request_id=name, num_computed_tokens=n, num_prompt_tokens=num_prompt)
            for name, n in lengths.items()
        ],
        kv_cache_manager=SimpleNamespace(
            block_pool=SimpleNamespace(get_num_free_blocks=lambda: free, num_gpu_blocks=101),
            coordinator=SimpleNamespace(
                single_type_managers=[SimpleNamespace(req_to_blocks=table) for table in tables]
            ),
        ),
    )


def test_shared_blocks_and_holes() -> None:
    sizes = [c.block_tokens for c in PLAN.classes]
    long, short = 2 * sizes[0] + 5, sizes[0] - 3
    tables = [
        {"a": [block(1), block(2), block(3)], "b": [block(1)]},
        {"a": [block(4)], "b": []},
        {"a": [block(5), NULL, block(6)], "b": [block(5)]},
    ]
    seen = scheduler(tables, {"b": short, "a": long}, free=93)
    census = take_census(seen, PLAN)
    assert list(census.held.values()) == [3, 1, 2]
    assert census.used == 7
    assert census.pending == 1
    names = [c.name for c in PLAN.classes]
    assert census.tokens[names[0]] == long == census.dense_tokens
    assert census.tokens[names[1]] == min(long, sizes[1])
    assert census.planned == sum(sum(PLAN.blocks(n).values()) for n in (long, short))
    assert [holding.request_id for holding in census.requests] == ["a", "b"]
    own = holding_of(seen, PLAN, seen.running[0])
    assert own.blocks == dict(zip(names, (1, 0, 1), strict=True))
    assert own.kept[names[0]] == short


def test_holes_of_a_capped_request_are_tokens_it_would_hold_dense() -> None:
    size = PLAN.classes[0].block_tokens
    tables = [{"a": [block(1), NULL, NULL, block(2)]}, {"a": [block(3)]}, {"a": [block(4)]}]
    census = take_census(scheduler(tables, {"a": 4 * size - 5}, free=96), PLAN)
    assert next(iter(census.tokens.values())) == 2 * size - 5
    assert census.dense_tokens == 4 * size - 5


def test_budgets_are_told() -> None:
    tables: list[dict[str, list[Any]]] = [{"a": [block(i)]} for i in (1, 2, 3)]
    narrow = (32, 32, 32)
    regimes = Regimes(PLAN.classes, [(0, (None, None, None))], 1000, narrow, narrow)
    budgets: Any = SimpleNamespace(
        budget_of=lambda request: SimpleNamespace(
            level=2, windows=narrow, regimes=regimes, passes=[(5, regimes)]
        ),
        squeezes=object(),
        accounts=SimpleNamespace(all_surplus=lambda: 7),
        left=lambda: 55,
        monitor=SimpleNamespace(level=1),
    )
    census = take_census(scheduler(tables, {"a": 3000}, free=97), PLAN, budgets=budgets)
    assert (census.unpromised, census.level) == (55, 1)
    assert (census.requests[0].level, census.requests[0].since) == (2, 5)
    assert census.surplus == 7
    names = [c.name for c in PLAN.classes]
    everything, kept = dict.fromkeys(names), dict.fromkeys(names, 32)
    assert census.requests[0].windows == [(0, everything), (1000, kept)]
    assert census.planned == sum(PLAN.blocks(3000, windows=narrow).values())
    assert census.planned < sum(PLAN.blocks(3000).values())


def test_a_prompt_is_planned_with_its_own_windows() -> None:
    tables: list[dict[str, list[Any]]] = [{"a": [block(i)]} for i in (1, 2, 3)]
    wide = (None, 2000, 2000)
    budgets: Any = SimpleNamespace(squeezes=None, left=lambda: 55, monitor=SimpleNamespace(level=0))
    for num_prompt in (3000, 2999):
        regimes = Regimes(PLAN.classes, [(0, wide)], num_prompt, PLAN.windows, PLAN.windows)
        own = SimpleNamespace(level=0, windows=PLAN.windows, regimes=regimes, passes=[(0, regimes)])
        budgets.budget_of = lambda request, own=own: own
        seen = scheduler(tables, {"a": 3000}, 97, num_prompt)
        census = take_census(seen, PLAN, budgets=budgets)
        windows = wide if num_prompt == 3000 else PLAN.windows
        assert census.planned == sum(PLAN.blocks(3000, windows=windows).values())
    assert census.planned < sum(PLAN.blocks(3000, windows=wide).values())


def test_it_travels_as_plain_values() -> None:
    import dataclasses

    tables: list[dict[str, list[Any]]] = [{"a": [block(i)]} for i in (1, 2, 3)]
    events = Events({"window": 3}, {"local": 2})
    census = take_census(scheduler(tables, {"a": 7}, free=97), PLAN, events)
    events.finished.append(census.requests[0])
    assert Census.from_dict(dataclasses.asdict(census)) == census
