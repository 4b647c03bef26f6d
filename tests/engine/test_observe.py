"""What an operator sees: the real server, Prometheus and browser, under load."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from monitoring.panels import DASHBOARDS
from testbench.one_side import ask

NEEDED = ("prometheus", "chromium", "chromedriver")

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, NEEDED)),
        reason="needs Prometheus and Chromium: run `make monitoring-tools`",
    ),
]


@pytest.fixture(scope="module")
def observed(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The last line of checks/observe.py."""
    folder = str(tmp_path_factory.mktemp("observe"))
    return ask("checks.observe", ["--model", str(demo_model), "--folder", folder], timeout=600)[1]


def test_every_panel_has_data(observed: Any) -> None:
    assert observed["panels"] == sum(len(dashboard.panels) for dashboard in DASHBOARDS)
    assert observed["panels_with_data"] == observed["panels"], observed["failures"]


def test_scalers_have_data(observed: Any) -> None:
    assert not [text for text in observed["failures"] if text.startswith("no data for a scaler")]


def test_page_and_prometheus_agree_census_by_census(observed: Any) -> None:
    assert observed["moments_compared"] > 0
    assert not [text for text in observed["failures"] if text.startswith("at ")]


def test_page_and_rules_have_no_faults(observed: Any) -> None:
    assert observed["page_ok"], observed["failures"]
    assert observed["rules_ok"], observed["failures"]
