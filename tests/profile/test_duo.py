"""DuoAttention's pattern files become profiles of the model they were trained for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_headaware.cli.main import main
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan import make_plan
from vllm_headaware.plan.geometry import read_geometry
from vllm_headaware.profile.duo import import_duo, read_pattern
from vllm_headaware.profile.format import HeadProfile

GATES = [[0.1, 0.9, 0.0, 0.2], [1.0, 0.3, 0.4, 0.5], [0.0, 0.0, 0.6, 0.0], [0.7, 0.0, 0.0, 0.8]]


def write_pattern(folder: Path, gates: list[list[float]] = GATES, separator: str = "\t") -> Path:
    folder.mkdir(exist_ok=True)
    lines = [separator.join(f"{gate:.18e}" for gate in row) for row in gates]
    (folder / "full_attention_heads.tsv").write_text("\n".join(lines) + "\n")
    (folder / "config.json").write_text(json.dumps({"sink_size": 128, "recent_size": 256}))
    return folder


@pytest.mark.parametrize("separator", ["\t", " "])
def test_gates_rank_the_heads_of_the_plan(tiny_model: Path, tmp_path: Path, separator: str) -> None:
    profile = import_duo(write_pattern(tmp_path / "p", separator=separator), tiny_model)
    assert profile.scores["gate"] == GATES
    assert (profile.method["sink"], profile.method["window"]) == (128, 256)
    profile.save(tmp_path / "profile.json")
    assert HeadProfile.load(tmp_path / "profile.json") == profile
    options = KVPolicyConfig("headaware", retrieval_share=2 / 16, induction_share=3 / 16)
    plan = make_plan(options, read_geometry(tiny_model), profile.scores)
    by_class = {
        c.name: {(y, h) for y in range(4) for h in plan.heads(y)[index]}
        for index, c in enumerate(plan.classes)
    }
    assert by_class["retrieval"] >= {(1, 0), (0, 1)}
    assert by_class["retrieval"] | by_class["induction"] >= {(3, 3), (3, 0), (2, 2)}


def test_from_the_command_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, path = write_pattern(tmp_path / "p"), tmp_path / "out.json"
    argv = ["profile", str(tiny_model), "--from-duo", str(pattern), "-o", str(path)]
    assert main([*argv, "--html", str(tmp_path / "p.html")]) == 0
    assert "gates of DuoAttention" in capsys.readouterr().out
    assert HeadProfile.load(path).scores["gate"] == GATES
    assert "DuoAttention" in (tmp_path / "p.html").read_text()
    assert main([*argv, "--samples", "9"]) == 2


def test_another_models_pattern_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    pattern = write_pattern(tmp_path / "p", GATES[:3])
    with pytest.raises(HeadAwareError, match=r"3 layers x 4 KV heads, the model 4 x 4"):
        import_duo(pattern, tiny_model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1\t0.2\n0.3\n", "not a matrix"),
        ("", "not a matrix"),
        ("0.1\tnone\n", "could not convert"),
        ("0.1\tnan\n", "not finite"),
    ],
)
def test_damaged_patterns_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "full_attention_heads.tsv"
    path.write_text(text)
    with pytest.raises(HeadAwareError, match=message):
        read_pattern(path)
    with pytest.raises(HeadAwareError, match="cannot read DuoAttention pattern"):
        read_pattern(tmp_path / "missing.tsv")


def test_gates_outside_their_range_are_clipped(tmp_path: Path) -> None:
    path = tmp_path / "full_attention_heads.tsv"
    path.write_text("-0.5\t1.5\n")
    assert read_pattern(path) == [[0.0, 1.0]]


def test_a_pattern_without_its_config_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    pattern = write_pattern(tmp_path / "p")
    (pattern / "config.json").write_text("{}")
    with pytest.raises(HeadAwareError, match="cannot read sink_size"):
        import_duo(pattern, tiny_model)
