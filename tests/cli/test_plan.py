"""`vllm-headaware plan`: the budget asked for and achieved, and what pressure would do."""

import json
from pathlib import Path

import pytest

from testbench.random_profile import write_profile
from tests.reference.tiny import TINY, make_tiny_model
from vllm_headaware.cli.main import main
from vllm_headaware.kernels.here import Here


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("plan"), TINY)
    write_profile(folder)
    return folder


def test_asked_and_achieved(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(model), "--kv-budget", "600", "--json", "--lengths", "3000,4000"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["budget"]["asked"] == 600
    assert 550 < report["budget"]["achieved"] <= 600
    assert all(c["window"] for c in report["classes"]), "retrieval is capped too"
    held = [level["request_bytes"] for level in report["levels"]]
    assert len(held) > 2
    assert held[0] == [row["request_bytes"] for row in report["lengths"]]
    assert held == sorted(held, reverse=True)
    assert "--kv-budget 600" in report["serve"]


def test_tables(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(model)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a KV head keeps" in text
    assert "everything" in text
    assert "windows of new requests when memory runs low" in text
    assert main(["plan", str(model), "--kv-floor", "1"]) == 0
    assert "when memory runs low" not in capsys.readouterr().out


def test_the_device_and_its_kernels(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["plan", str(model)]) == 0
    assert "This machine: cpu; kernels: native, for" in " ".join(capsys.readouterr().out.split())
    gpu = Here("NVIDIA H100 80GB HBM3", 80 * 2**30)
    monkeypatch.setattr("vllm_headaware.cli.plan.look", lambda: gpu)
    assert main(["plan", str(model)]) == 2
    assert "cannot serve this model on GPUs: they take head sizes" in capsys.readouterr().err
    assert "Triton" in gpu.kernels(128, 4)


def test_heavy_hitters(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plan", str(model), "--kv-policy", "h2o", "--kv-budget", "512"]) == 0
    assert "latest and heaviest:" in " ".join(capsys.readouterr().out.split())


def test_wider_windows_for_prompts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", str(model), "--lengths", "1000,4000", "--kv-prefill-window", "2000"]
    assert main(asked) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "windows are at least 2,000 tokens: one of 4,000 tokens then holds" in text
    assert main([*asked, "--json"]) == 0
    _, long = json.loads(capsys.readouterr().out)["lengths"]
    assert long["request_bytes"] < long["reading_bytes"] < long["dense_bytes"]
    assert main(asked[:-2]) == 0
    assert "A prompt is read in full" in capsys.readouterr().out
    assert main([*asked[:-1], "0"]) == 0
    assert "prompt" not in capsys.readouterr().out


def test_a_budget_that_cannot_be_kept(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(model), "--kv-budget", "5"]) == 2
    assert "is less than the" in capsys.readouterr().err
