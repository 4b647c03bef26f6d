"""A wheel, installed in an environment of its own, serves with a policy."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from testbench.wheel import answer, build_wheel, empty_environment, install

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist"))


def test_the_wheel_has_everything(wheel: Path) -> None:
    """Kernels for every Python, the page, the typing marker, the contract, the shipped profile."""
    assert "-cp310-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for end in ("_native.abi3.so", "page.html", "py.typed", "contract.json"):
        assert any(name.endswith(end) for name in names), end
    assert any("profile/shipped/" in name for name in names)
    assert not [name for name in names if name.startswith("tests/")]


def test_it_serves_from_an_environment_of_its_own(
    wheel: Path, tiny_model: Path, tmp_path: Path
) -> None:
    python = empty_environment(tmp_path / "venv", lend=True)
    install(python, wheel, lend=True)
    got = answer(python, tiny_model, tmp_path)
    assert len(got["tokens"]) == 8
    assert Path(got["package"]).is_relative_to(tmp_path / "venv")
