"""A profile file is read back as it was written, or refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.profile.profiles import HASH, make_profile
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.format import SCORES, HeadProfile


def test_round_trip_and_one_layer_per_line(tmp_path: Path) -> None:
    profile = make_profile()
    path = tmp_path / "p.json"
    profile.save(path)
    again = HeadProfile.load(path)
    assert again == profile
    assert again.checksum == profile.checksum
    lines = path.read_text().splitlines()
    assert sum(line.strip().rstrip(",") == "[0.015625, 0.03125]" for line in lines) == len(SCORES)
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"], "temporary file left behind"


def test_checksum_ignores_layout_but_no_value(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    make_profile().save(path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert HeadProfile.load(path) == make_profile()


def test_a_profile_without_an_ablation_keeps_its_checksum(tmp_path: Path) -> None:
    path, bare = tmp_path / "p.json", dataclasses.replace(make_profile(), ablation={})
    bare.save(path)
    assert "ablation" not in json.loads(path.read_text())
    assert HeadProfile.load(path) == bare
    assert bare.checksum != make_profile().checksum


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.json"
    make_profile().save(path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_profile(layers=1).save(path)
    assert HeadProfile.load(path) == make_profile()
    assert len(list(tmp_path.iterdir())) == 1


def _edit(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(values: dict[str, Any]) -> None:
        values[key] = value

    return edit


def _score(value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(values: dict[str, Any]) -> None:
        values["scores"]["copy"][1][1] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit("format", "something-else"), "is not a head profile"),
        (_edit("version", 1), "has version 1, this release reads 2"),
        (lambda v: v.pop("checksum"), "lacks a part"),
        (_edit("ablation", [1]), "lacks a part"),
        (lambda v: v["model"].pop("hash"), "lacks a part"),
        (lambda v: v["model"].update(num_layers=4), "are not 4 layers x 2 KV heads"),
        (lambda v: v["scores"]["gate"][2].append(0.5), "are not 3 layers x 2 KV heads"),
        (lambda v: v["scores"].pop("induction"), "has no 'induction' scores"),
        (_edit("token_scores", "AAAA"), "3 bytes are not 3 x 2 x 72 weights"),
        (_edit("token_scores", "?"), "not base64"),
        (_edit("token_scores", [1]), "token scores"),
        (_edit("token_scores", "////" * 288), "not finite"),
        (_edit("scores", None), "has no 'gate' scores"),
        (_edit("scores", []), "has no 'gate' scores"),
        (_edit("method", None), "lacks a part"),
        (_score(float("nan")), "contain nan"),
        (_score(float("inf")), "contain inf"),
        (_score(-0.25), "contain -0.25"),
        (_score("0.25"), "contain '0.25'"),
        (_score(True), "contain True"),
        (_score(0.75), "was changed after it was made"),
        (lambda v: v["method"].update(window=9), "was changed after it was made"),
        (_edit("checksum", "sha256:0"), "was changed after it was made"),
    ],
)
def test_refuses(tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = tmp_path / "p.json"
    make_profile().save(path)
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(HeadAwareError) as caught:
        HeadProfile.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "vllm-headaware profile MODEL" in str(caught.value), "must say what to do"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_refuses_truncated(tmp_path: Path, share: float) -> None:
    path = tmp_path / "p.json"
    make_profile().save(path)
    text = path.read_text().rstrip()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(HeadAwareError, match="truncated or not JSON"):
        HeadProfile.load(path)


def test_refuses_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(HeadAwareError, match="cannot read head profile"):
            HeadProfile.load(path)


def test_others_may_read_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    make_profile().save(path)
    assert path.stat().st_mode & 0o777 == 0o644


def test_requires_its_own_model() -> None:
    make_profile().require_model(HASH)
    make_profile().require_model(HASH, 3, 2)
    with pytest.raises(HeadAwareError, match="has 3 layers, the model 4"):
        make_profile().require_model(HASH, 4, 2)
    with pytest.raises(HeadAwareError, match="has 2 KV heads per layer, the model 3"):
        make_profile().require_model(HASH, 3, 3)
    with pytest.raises(HeadAwareError, match="another model"):
        make_profile().require_model(HASH.replace("5", "6"))
