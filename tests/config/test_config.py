"""Flags and policy files: merged, validated, refused with the nearest valid name."""

from pathlib import Path

import pytest

from vllm_headaware.config import KVPolicyConfig, make_config, read_policy_file
from vllm_headaware.errors import HeadAwareError


def test_defaults_are_off() -> None:
    config = make_config({})
    assert config == KVPolicyConfig()
    assert not config.active


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("policy: headaware\nsink: 16\nkv-window: 97\n")
    config = make_config({"sink": 32, "window": None}, path)
    assert (config.policy, config.sink, config.window) == ("headaware", 32, 97)


def test_json_files_too(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"policy": "headaware", "retrieval_share": 0.5}')
    assert make_config({}, path).retrieval_share == 0.5


def test_group_tracker_null_is_deprecated(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("policy: headaware\ngroup_tracker: null\n")
    with pytest.warns(DeprecationWarning, match="group_tracker"):
        assert make_config({}, path).active


@pytest.mark.parametrize("value", ["0", "false", "{}", "''", "[1]"])
def test_group_tracker_else_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"group_tracker: {value}\n")
    with pytest.raises(HeadAwareError, match="must be null"):
        read_policy_file(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("polcy: headaware\n", "did you mean 'policy'"),
        ("- headaware\n", "must hold a mapping"),
        ("policy: [\n", "is not valid"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(HeadAwareError, match=sentence):
        read_policy_file(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadAwareError, match="cannot read"):
        read_policy_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "tangram"},
        {"retrieval_share": -0.1},
        {"retrieval_share": float("nan")},
        {"induction_share": "half"},
        {"sink": -1},
        {"sink": 1.5},
        {"window": 0},
        {"window": True},
        {"window": 300, "induction_window": 200},
        {"head_profile": ""},
        {"retrieval_dtype": "int3"},
        {"local_dtype": 8},
    ],
    ids=str,
)
def test_bad_values_are_refused(wrong: dict) -> None:
    with pytest.raises(HeadAwareError):
        make_config({"policy": "headaware", **wrong})


def test_options_of_an_idle_policy_are_refused() -> None:
    with pytest.raises(HeadAwareError, match="would ignore it"):
        make_config({"window": 128})
    with pytest.raises(HeadAwareError, match=r"retrieval_share set, .* 'streamingllm' and would"):
        make_config({"policy": "streamingllm", "retrieval_share": 0.5})
    wide = make_config({"policy": "streamingllm", "window": 4096})
    assert wide.window == 4096, "the induction window is not read, so it does not bind"
