"""promtool judges rules, alerts and configuration; every alert has a page and tests."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.generate import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str | Path, folder: Path = PROMETHEUS) -> str:
    """Output of promtool.

    Raises:
        AssertionError: it found a fault.
    """
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: run `make monitoring-tools`")
    done = subprocess.run(
        [program, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict]:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in groups["groups"] for rule in group["rules"]]


def test_configuration_is_valid() -> None:
    promtool("check", "config", "prometheus.yml")


def test_rules_do_what_their_tests_say() -> None:
    promtool("test", "rules", "rules_test.yml", folder=PROMETHEUS / "tests")


def test_every_alert_fires_in_a_test() -> None:
    text = (PROMETHEUS / "tests" / "rules_test.yml").read_text(encoding="utf-8")
    cases = [
        (case["alertname"], case["exp_alerts"])
        for test in yaml.safe_load(text)["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    for alert in alerts():
        own = [expected for name, expected in cases if name == alert["alert"]]
        assert any(own), f"{alert['alert']} never fires in a test"


def test_every_alert_has_a_runbook_with_its_name() -> None:
    for alert in alerts():
        page = ROOT / alert["annotations"]["runbook"]
        assert page.read_text(encoding="utf-8").startswith(f"# {alert['alert']}\n")
    assert len(list((ROOT / "docs" / "runbooks").glob("*.md"))) == len(alerts())
