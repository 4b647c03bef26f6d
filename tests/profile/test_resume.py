"""A measurement that was stopped goes on with what it had found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_headaware.profile import run
from vllm_headaware.profile.resume import Findings, unfinished_place
from vllm_headaware.profile.run import profile_model

ASKED: dict[str, Any] = {"sink": 4, "window": 16, "samples": 3, "lengths": (97, 131)}


@pytest.mark.slow
def test_a_stopped_measurement_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = profile_model(tiny_model, **ASKED)
    assert not list(tmp_path.iterdir()), "nothing is kept unless asked"
    asked, ask = [], run.gate_gradients

    def counted(*args: Any) -> Any:
        asked.append(args)
        return ask(*args)

    monkeypatch.setattr(run, "gate_gradients", counted)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    train = run.train_gates
    monkeypatch.setattr(run, "train_gates", stop)
    with pytest.raises(KeyboardInterrupt):
        profile_model(tiny_model, **ASKED, resume=True)
    monkeypatch.setattr(run, "train_gates", train)
    assert len(asked) == 3
    again = profile_model(tiny_model, **ASKED, resume=True)
    assert len(asked) == 3, "questions are not asked twice"
    assert again.scores == whole.scores
    assert again.agreement == whole.agreement
    assert not list((tmp_path / "vllm-headaware" / "unfinished").iterdir()), "all is done"
    profile_model(tiny_model, **ASKED, resume=True)
    assert len(asked) == 6


def test_what_cannot_be_read_is_found_again(tmp_path: Path) -> None:
    ticks: list[int] = []
    found = Findings(tmp_path / "new", ticks.append)
    assert found.once("a", lambda: (torch.ones(2), None), 5)[1] is None
    assert ticks == []
    assert torch.equal(found.once("a", lambda: 0, 5)[0], torch.ones(2))
    assert ticks == [5]
    (tmp_path / "new" / "a.pt").write_bytes(b"cut off")
    assert found.once("a", lambda: 7) == 7
    assert found.once("a", lambda: 8) == 7
    found.forget()
    assert found.once("a", lambda: 9) == 9
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert Findings(blocked / "no folder").once("a", lambda: 1) == 1


def test_other_questions_other_places() -> None:
    assert unfinished_place("m", {"seed": 0}) != unfinished_place("m", {"seed": 1})
    assert unfinished_place("m", {"seed": 0}) != unfinished_place("n", {"seed": 0})
    assert unfinished_place("m", {"seed": 0}) == unfinished_place("m", {"seed": 0})
