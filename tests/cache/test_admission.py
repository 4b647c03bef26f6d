"""Admission: whoever starts can finish, at every moment; and the level that new requests get."""

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plan.test_plan import DEMO, plan_for
from vllm_headaware.cache.admission import (
    HIGH_WATER,
    LOW_WATER,
    PATIENCE,
    BudgetMonitor,
    Pool,
    Tenant,
)
from vllm_headaware.plan import Plan
from vllm_headaware.plan.ladder import make_ladder

PLAN = plan_for(DEMO, sink=50, window=200, induction_window=700)
WIDE_PROMPTS = plan_for(DEMO, sink=50, window=200, induction_window=700, prefill_window=900)
BLOCK: Any = SimpleNamespace(ref_cnt=1, is_null=False)
SHARED: Any = SimpleNamespace(ref_cnt=2, is_null=False)
FREE: Any = SimpleNamespace(ref_cnt=0, is_null=False)
HOLE: Any = SimpleNamespace(ref_cnt=1, is_null=True)


@dataclass
class Running:
    """A request in the simulation below."""

    plan: Plan
    prompt: int
    full: int
    windows: Any
    scheduled: int = 0
    settled: int = 0
    chunks: list[int] = field(default_factory=list)

    @property
    def held(self) -> list[int]:
        blocks = self.plan.blocks(self.scheduled, self.settled, self.windows, self.prompt)
        return list(blocks.values()) if self.scheduled else [0] * len(self.plan.classes)

    def tenant(self) -> Tenant:
        prefill = max(self.prompt - self.settled, 0)
        own = [[BLOCK] * n for n in self.held]
        if self.windows[0] is None:  # holes are none of an unlimited class
            assert len(own[0]) == -(-self.scheduled // self.plan.classes[0].block_tokens)
        return Tenant(self.windows, self.full, own, prefill, self.prompt if prefill else 0)


@pytest.mark.parametrize("plan", [PLAN, WIDE_PROMPTS], ids=["same", "wider-for-prompts"])
@pytest.mark.parametrize("seed", range(5))
def test_nobody_who_started_runs_out_of_blocks(seed: int, plan: Plan) -> None:
    rng = random.Random(seed)
    steps_in_flight, batch = rng.choice([1, 2]), rng.choice([64, 100, 512])
    capacity = rng.randrange(120, 260)
    pool = Pool(plan.classes, capacity, steps_in_flight * batch, steps_in_flight)
    ladder = make_ladder(plan.classes, plan.windows, 0.25)
    waiting = [(rng.randrange(1, 2000), rng.randrange(1, 400)) for _ in range(60)]
    running: list[Running] = []
    most = finished = 0
    while waiting or running:
        budget = batch
        for request in running:
            tokens = min(request.prompt - request.scheduled, budget)
            tokens = max(tokens, 1) if budget and request.scheduled < request.full else 0
            request.scheduled += tokens
            request.chunks.append(tokens)
            budget -= tokens
            held = sum(sum(r.held) for r in running)
            assert held <= capacity, f"{held} of {capacity} blocks with {len(running)} running"
            most = max(most, held)
        while waiting and budget:
            prompt, new = waiting[0]
            request = Running(plan, prompt, prompt + new, rng.choice(ladder))
            free = capacity - sum(sum(r.held) for r in running)
            wanted = Tenant(request.windows, request.full, [[]] * 3, prompt, prompt)
            if running and pool.left(free, [r.tenant() for r in running], wanted) < 0:
                break
            assert running or pool.fits_alone(request.windows, request.full, prompt)
            waiting.pop(0)
            running.append(request)
            request.scheduled = tokens = min(prompt, budget)
            request.chunks.append(tokens)
            budget -= tokens
            held = sum(sum(r.held) for r in running)
            assert held <= capacity, "the first chunk of a request that started did not fit"
        for request in running:
            if len(request.chunks) >= steps_in_flight:
                request.settled += request.chunks.pop(0)
        finished += sum(r.settled >= r.full for r in running)
        running = [r for r in running if r.settled < r.full]
    assert finished == 60
    assert most > 0.6 * capacity, "admission should not leave the pool idle"


def test_what_is_shared_is_not_promised_twice() -> None:
    pool = Pool(PLAN.classes, 500, 64)
    size = PLAN.classes[0].block_tokens
    full = 40 * size
    everything = (None, *PLAN.windows[1:])
    other = Tenant(everything, full, [[SHARED] * 30, [], []], 0)
    empty = Tenant(everything, full, [[], [], []], full)
    hits = Tenant(everything, full, [[SHARED] * 30, [], []], full)
    cached = Tenant(everything, full, [[FREE] * 30, [], []], full)
    alone = pool.left(500, [other], empty)
    assert pool.left(500, [other], hits) == alone + 30
    assert pool.left(500, [other], cached) == alone, "a cached block must still be taken"


def test_shared_blocks_of_a_window_do_not_count_as_kept() -> None:
    pool = Pool(PLAN.classes, 500, 64)
    own = Tenant(PLAN.windows, 4000, [[BLOCK] * 9, [BLOCK] * 3, [HOLE, BLOCK]], 0)
    shared = Tenant(PLAN.windows, 4000, [[SHARED] * 9, [SHARED] * 3, [HOLE, SHARED]], 0)
    assert pool.left(400, [own]) - pool.left(400, [shared]) == 3 + 1


def test_a_request_that_never_fits() -> None:
    most = sum(c.most_blocks(8192, c.policy.window, 100) for c in PLAN.classes)
    assert Pool(PLAN.classes, most, 100).fits_alone(PLAN.windows, 8192, 8000)
    assert not Pool(PLAN.classes, most - 1, 100).fits_alone(PLAN.windows, 8192, 8000)


def test_a_prompt_that_never_fits() -> None:
    classes, windows = WIDE_PROMPTS.classes, WIDE_PROMPTS.windows
    most = sum(c.most_blocks(8001, c.reading_window(c.policy.window), 100) for c in classes)
    assert most > sum(c.most_blocks(8192, c.policy.window, 100) for c in classes)
    assert Pool(classes, most, 100).fits_alone(windows, 8192, 8000)
    assert not Pool(classes, most - 1, 100).fits_alone(windows, 8192, 8000)
    assert Pool(classes, most - 1, 100).fits_alone(windows, 8192, 300), "a short prompt"


def test_budgets_tighten_at_low_water_and_relax_with_patience() -> None:
    monitor = BudgetMonitor(3)
    assert not monitor.started(LOW_WATER + 0.01)
    assert monitor.started(LOW_WATER - 0.01)
    assert monitor.level == 1
    for _ in range(PATIENCE - 1):
        assert not monitor.may_relax()
    assert monitor.may_relax()
    assert not monitor.relax(HIGH_WATER - 0.01), "between the waters nothing moves"
    assert monitor.relax(HIGH_WATER + 0.01)
    assert monitor.level == 0
    assert not monitor.may_relax(), "patience starts again"
    assert monitor.changes == {"tighten": 1, "relax": 1}


def test_pressure_restarts_patience_and_the_floor_holds() -> None:
    monitor = BudgetMonitor(3)
    assert monitor.tighten()
    for _ in range(PATIENCE - 1):
        monitor.may_relax()
    assert monitor.tighten()
    assert not monitor.may_relax()
    assert monitor.at_floor
    assert not monitor.tighten()
    assert monitor.level == 2
    monitor.reset()
    assert monitor.level == 0
    assert monitor.changes == {"tighten": 2, "relax": 2}


def test_what_is_held_counts_and_a_prefill_needs_a_block_more() -> None:
    pool = Pool(PLAN.classes, 500, 0)
    windows = (None, *PLAN.windows[1:])
    holding = Tenant(windows, 6000, [[BLOCK] * 12, [BLOCK] * 2, [BLOCK]], 0)
    nothing = Tenant(windows, 6000, [[], [], []], 0)
    assert pool.left(400, [holding]) - pool.left(400, [nothing]) == 12 + 2 + 1
    prefilling = Tenant(windows, 6000, [[], [], []], 6000)
    assert pool.left(400, [nothing]) - pool.left(400, [prefilling]) == 2, "one per windowed class"
    short = Tenant(windows, 20, [[], [], []], 20)
    assert pool.left(400, [short]) == 400 - 3, "never more than the request has"
