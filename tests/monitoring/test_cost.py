"""The cost of the policy's own metrics is measured on the server's own plan."""

from monitoring.cost import own_cost
from tests.observability.test_live import live


def test_series_and_seconds_are_those_of_the_plan() -> None:
    render, update, series = own_cost(live().plan_json())
    heads, layers = 90, 30
    assert 2 * (heads + layers) < series < 2 * (heads + layers) + 200
    assert 0 < render < 1
    assert 0 < update < 1
