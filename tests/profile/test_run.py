"""A tiny model is measured end to end: reproducibly, quietly, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.format import SCORES, HeadProfile
from vllm_headaware.profile.model_hash import model_hash
from vllm_headaware.profile.run import profile_model

ARGUMENTS: dict[str, Any] = {"sink": 4, "window": 16, "samples": 3, "lengths": (97, 131)}


@pytest.mark.slow
def test_profile_of_an_awkward_shape_repeats(
    tiny_model_3_kv_heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = profile_model(tiny_model_3_kv_heads, **ARGUMENTS)
    assert capfd.readouterr().err == "", "no bar when stderr is not a terminal"
    again = profile_model(tiny_model_3_kv_heads, **ARGUMENTS, progress=True)
    assert "profiling heads" in capfd.readouterr().err
    other = profile_model(tiny_model_3_kv_heads, **ARGUMENTS, seed=1)
    assert again.scores == first.scores
    assert again.agreement == first.agreement
    assert other.scores["gate"] != first.scores["gate"]
    assert other.scores["induction"] != first.scores["induction"]

    first.require_model(model_hash(tiny_model_3_kv_heads), 4, 3)
    assert (first.model.num_query_heads, first.model.head_size) == (9, 64)
    assert sum(map(sum, first.scores["gate"])) == pytest.approx(1.0, abs=1e-4)
    assert 0 <= min(map(min, first.scores["answer"])) < max(map(max, first.scores["answer"])) <= 1
    assert first.scores["answer"] != first.scores["gate"]
    assert first.method["lengths"] == [97, 131]
    assert set(first.agreement["split_half_spearman"]) == set(SCORES)
    first.save(tmp_path / "p.json")
    assert HeadProfile.load(tmp_path / "p.json") == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 1}, "samples must be at least 2"),
        ({"lengths": (20,)}, "fit in sinks and window"),
        ({"lengths": ()}, "fit in sinks and window"),
        ({"lengths": (97, 5000)}, "do not fit in the model's 4096 positions"),
        ({"window": 0}, "window 1 or more"),
        ({"sink": -1}, "sink must be 0 or more"),
    ],
)
def test_refuses_arguments(tiny_model: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadAwareError, match=message):
        profile_model(tiny_model, **{**ARGUMENTS, **change})


def test_refuses_models_the_probe_would_get_wrong(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(tiny_model / name)
    for change in (
        {"sliding_window": 128},
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        {"attn_logit_softcapping": 50.0},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(HeadAwareError, match="cannot be profiled"):
            profile_model(tmp_path, **ARGUMENTS)


def test_refuses_folders_that_do_not_load(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "never-heard-of"}')
    with pytest.raises(HeadAwareError, match="cannot load the model") as caught:
        profile_model(tmp_path, **ARGUMENTS)
    assert "\n" not in str(caught.value)
