"""Where `auto` looks, in which order, and what it refuses."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.profile.profiles import make_profile
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile import run
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.locate import FILE_NAME, find_profile, keep_profile, profile_places
from vllm_headaware.profile.model_hash import model_hash


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of one's own, an empty user cache, and no measuring unless a test allows it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / FILE_NAME).unlink(missing_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured although a profile was there")

    monkeypatch.setattr(run, "profile_model", refuse)
    return folder


def own_profile(model: Path, layers: int = 4) -> HeadProfile:
    return make_profile(layers, 4, model_hash(model))


def test_next_to_the_model_comes_before_the_cache(model: Path, tmp_path: Path) -> None:
    beside, cached = profile_places(model, model_hash(model))
    assert cached.is_relative_to(tmp_path / "cache" / "vllm-headaware" / "profiles")
    keep_profile(own_profile(model, 3), [cached])
    assert find_profile(model) == own_profile(model, 3)
    own_profile(model).save(beside)
    assert find_profile(model) == own_profile(model)


def test_other_sinks_or_windows_are_said(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own_profile(model).save(model / FILE_NAME)  # measured with 4 and 8
    assert find_profile(model, sink=4, window=8) == own_profile(model)
    assert capfd.readouterr().err == ""
    assert find_profile(model, sink=4, window=16) == own_profile(model)
    assert capfd.readouterr().err == "", "wider than measured: the ranking holds"
    assert find_profile(model, sink=4, window=6) == own_profile(model)
    assert "sinks of 4 and a window of 8 tokens, not 4 and 6" in capfd.readouterr().err


def test_measures_once_and_keeps(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def measure(folder: Path, **arguments: object) -> HeadProfile:
        calls.append(arguments)
        return own_profile(model)

    monkeypatch.setattr(run, "profile_model", measure)
    assert find_profile(model, sink=5, window=33) == own_profile(model)
    assert find_profile(model) == own_profile(model)
    assert calls == [{"sink": 5, "window": 33, "progress": True, "resume": True}]
    assert (model / FILE_NAME).exists()
    assert f"kept in {model / FILE_NAME}" in capfd.readouterr().err


def test_keeps_in_the_cache_when_the_model_folder_cannot_be_written(model: Path) -> None:
    places = [Path(os.devnull) / FILE_NAME, *profile_places(model, model_hash(model))[1:]]
    assert keep_profile(own_profile(model), places) == places[1]
    with pytest.raises(HeadAwareError, match="cannot write a head profile to any of"):
        keep_profile(own_profile(model), places[:1])


def test_refuses_missing_damaged_and_foreign_files(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(HeadAwareError, match="does not exist; make it with"):
        find_profile(model, str(path))
    make_profile().save(path)
    with pytest.raises(HeadAwareError, match="another model"):
        find_profile(model, str(path))
    shutil.copy(path, model / FILE_NAME)
    with pytest.raises(HeadAwareError, match="another model"):
        find_profile(model)
    (model / FILE_NAME).write_text("{")
    with pytest.raises(HeadAwareError, match="truncated"):
        find_profile(model)


def test_readers_never_see_a_part_of_a_file(model: Path) -> None:
    path = model / FILE_NAME
    own_profile(model).save(path)

    def write() -> None:
        for _ in range(40):
            own_profile(model).save(path)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert HeadProfile.load(path) == own_profile(model)
    assert not [p for p in model.iterdir() if p.name.startswith(f".{FILE_NAME}")]
