"""Admission: whoever starts can finish, at every moment; and the level that new requests get."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.plan.test_plan import DEMO, plan_for
from vllm_headaware.cache.accounts import OVERCOMMIT, Account, Accounts, Claim
from vllm_headaware.cache.admission import (
    HIGH_WATER,
    LOW_WATER,
    PATIENCE,
    BudgetMonitor,
    Pool,
)
from vllm_headaware.plan import Plan
from vllm_headaware.plan.ladder import make_ladder
from vllm_headaware.plan.windows import Windows

PLAN = plan_for(DEMO, sink=50, window=200, induction_window=700)
WIDE_PROMPTS = plan_for(DEMO, sink=50, window=200, induction_window=700, prefill_window=900)


def pool_of(
    capacity: int, max_in_flight: int, steps_in_flight: int = 1, plan: Plan = PLAN
) -> Accounts:
    return Accounts(Pool(plan.classes, capacity, max_in_flight, steps_in_flight))


def read_by(plan: Plan, windows: Windows) -> Windows:
    return tuple(c.reading_window(w) for c, w in zip(plan.classes, windows, strict=True))


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

    def claim(self) -> Claim:
        prefill = max(self.prompt - self.settled, 0)
        reading = read_by(self.plan, self.windows)
        prompt = self.prompt if prefill else 0
        return Claim(self.windows, reading, self.full, self.full, prefill, prompt)


@pytest.mark.parametrize("plan", [PLAN, WIDE_PROMPTS], ids=["same", "wider-for-prompts"])
@pytest.mark.parametrize("seed", range(5))
def test_nobody_who_started_runs_out_of_blocks(seed: int, plan: Plan) -> None:
    rng = random.Random(seed)
    steps_in_flight, batch = rng.choice([1, 2]), rng.choice([64, 100, 512])
    capacity = rng.randrange(120, 260)
    accounts = pool_of(capacity, steps_in_flight * batch, steps_in_flight, plan)
    pool = accounts.pool
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
            for r in running:
                accounts.open(str(id(r)), r.claim(), r.held)
            if running and accounts.left(free, request.claim()) < 0:
                break
            assert running or pool.fits_alone(
                request.windows, read_by(plan, request.windows), request.full, prompt
            )
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
        for request in running:
            if request.settled >= request.full:
                accounts.close(str(id(request)))
        running = [r for r in running if r.settled < r.full]
    assert finished == 60
    assert accounts.left(capacity) == capacity, "sums that do not come back to nothing"
    assert most > 0.6 * capacity, "admission should not leave the pool idle"


def test_what_is_shared_is_not_promised_twice() -> None:
    full = 40 * PLAN.classes[0].block_tokens
    everything = (None, *PLAN.windows[1:])
    accounts = pool_of(500, 64)
    accounts.open("other", Claim(everything, everything, full, full), [30, 0, 0])
    wanted = Claim(everything, everything, full, full, full)
    assert accounts.left(500, wanted, [30, 0, 0]) == accounts.left(500, wanted) + 30


def test_only_what_a_request_holds_alone_counts_as_kept() -> None:
    accounts = pool_of(500, 64)
    claim = Claim(PLAN.windows, PLAN.windows, 4000, 4000)
    account = accounts.open("r", claim, [9, 3, 1])
    before = accounts.left(400)
    accounts.holds(account, [9, 0, 0])
    assert before - accounts.left(400) == 3 + 1


@pytest.mark.parametrize("elastic", [False, True])
def test_sums_are_what_a_recount_gives(elastic: bool) -> None:
    """Whatever order requests come, change and go in."""
    rng = random.Random(8)
    accounts = Accounts(Pool(PLAN.classes, 900, 200, 2), elastic)
    known: dict[str, tuple[Claim, list[int]]] = {}
    opened: dict[str, Account] = {}
    for step in range(600):
        name = f"r{rng.randrange(12)}"
        windows = rng.choice([PLAN.windows, (500, 300, 100)])
        reading = rng.choice([windows, (None, None, None), (-256, -512, 900)])
        full, prompt = rng.randrange(1, 6000), rng.choice([0, 0, 900])
        claim = Claim(windows, reading, full, full + rng.choice([0, 3000]), prompt, prompt)
        own = [rng.randrange(20) for _ in PLAN.classes]
        if name in known and rng.random() < 0.3:
            accounts.close(name)
            del known[name]
        elif name in known and rng.random() < 0.5:
            known[name] = (known[name][0], own)
            accounts.holds(opened[name], own)
        else:
            known[name] = (claim, own)
            opened[name] = accounts.open(name, claim, own)
        wanted = rng.choice([None, claim])
        assert accounts.left(700, wanted) == recount(accounts.pool, 700, known, wanted, elastic), (
            step
        )


def recount(pool: Pool, free: int, known: Any, wanted: Claim | None, elastic: bool = False) -> int:
    """Accounts.left, from scratch."""

    def promises(claim: Claim) -> list[int]:
        return pool.promises(
            claim.windows, claim.reading, claim.expected, claim.num_prompt, claim.prefill_tokens
        )

    claims = [claim for claim, _ in known.values()] + ([wanted] if wanted else [])
    prefill = min(sum(claim.prefill_tokens for claim in claims), pool.max_in_flight)
    left = free - (sum(promises(wanted)) if wanted else 0)
    for index, head_class in enumerate(pool.classes):
        needs = [promises(claim)[index] - own[index] for claim, own in known.values()]
        left -= sum(max(need, 0) for need in needs)
        excess = sum(max(-need, 0) for need in needs)
        if any(claim.windows[index] is not None for claim in claims):
            lack = -(-prefill // head_class.block_tokens) - excess
            left -= lack if elastic else max(lack, 0)
    return left


def test_the_pool_is_not_promised_without_end() -> None:
    accounts = pool_of(500, 64)
    claim = Claim(PLAN.windows, PLAN.windows, 300, 8000)
    worst = sum(accounts.pool.promises(PLAN.windows, PLAN.windows, 8000, 0, 0))
    fit = int(OVERCOMMIT * 500) // worst
    for number in range(fit):
        assert not accounts.overcommitted(claim), number
        accounts.open(f"r{number}", claim, [0, 0, 0])
    assert accounts.overcommitted(claim)


def test_a_request_that_never_fits() -> None:
    most = sum(c.most_blocks(8192, c.policy.window, 100) for c in PLAN.classes)
    assert Pool(PLAN.classes, most, 100).fits_alone(PLAN.windows, PLAN.windows, 8192, 8000)
    assert not Pool(PLAN.classes, most - 1, 100).fits_alone(PLAN.windows, PLAN.windows, 8192, 8000)


def test_a_prompt_that_never_fits() -> None:
    classes, windows = WIDE_PROMPTS.classes, WIDE_PROMPTS.windows
    reading = read_by(WIDE_PROMPTS, windows)
    most = sum(c.most_blocks(8001, c.reading_window(c.policy.window), 100) for c in classes)
    assert most > sum(c.most_blocks(8192, c.policy.window, 100) for c in classes)
    assert Pool(classes, most, 100).fits_alone(windows, reading, 8192, 8000)
    assert not Pool(classes, most - 1, 100).fits_alone(windows, reading, 8192, 8000)
    assert Pool(classes, most - 1, 100).fits_alone(windows, reading, 8192, 300), "a short prompt"


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
    windows = (None, *PLAN.windows[1:])

    def left(claim: Claim, own: list[int]) -> int:
        accounts = pool_of(500, 0)
        accounts.open("r", claim, own)
        return accounts.left(400)

    decoding = Claim(windows, windows, 6000, 6000)
    nothing = left(decoding, [0, 0, 0])
    assert left(decoding, [12, 2, 1]) - nothing == 12 + 2 + 1
    prefilling = left(Claim(windows, windows, 6000, 6000, 6000), [0, 0, 0])
    assert nothing - prefilling == 2, "one per windowed class"
    assert left(Claim(windows, windows, 20, 20, 20), [0, 0, 0]) == 400 - 3, "never more than it has"
