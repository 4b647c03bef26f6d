"""How often a busy scheduler is counted."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.observability.test_metrics import CENSUS
from tests.plan.test_plan import DEMO, plan_for
from vllm_headaware.vllm_compat.engine_core import census


class Clock:
    """Seconds that pass only when told; a census takes some."""

    def __init__(self, census_seconds: float) -> None:
        self.now, self.census_seconds = 100.0, census_seconds

    def monotonic(self) -> float:
        return self.now

    def census(self, scheduler: Any) -> Any:
        self.now += self.census_seconds
        return CENSUS


@pytest.mark.parametrize(("census_seconds", "pause"), [(0.001, 0.5), (0.02, 2.0)])
@pytest.mark.parametrize("running", [[object()], []], ids=["busy", "idle"])
def test_censuses_cost_little(
    monkeypatch: pytest.MonkeyPatch, census_seconds: float, pause: float, running: list[Any]
) -> None:
    """Half a second apart, or as far as keeps them within COST_SHARE; idle engines at once."""
    clock = Clock(census_seconds)
    ledger = census.SchedulerLedger(plan_for(DEMO))
    monkeypatch.setattr(ledger, "census", clock.census)
    monkeypatch.setattr(census, "time", clock)
    scheduler = SimpleNamespace(running=running, _headaware_ledger=ledger)

    def counted() -> bool:
        made = census._make_stats(lambda self: SimpleNamespace(kv_connector_stats=None), scheduler)
        return made.kv_connector_stats is not None

    start = clock.now
    assert counted()
    clock.now = start + pause - 0.01
    assert counted() is (not running)
    clock.now += 0.02
    assert counted()
