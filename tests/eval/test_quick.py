"""The quick comparison, end to end on a tiny model, from the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from testbench.random_profile import write_profile
from tests.eval.tokenizer import WordTokenizer
from vllm_headaware.cli.main import main
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval import measure
from vllm_headaware.eval.quick import METHODS, prompts_of, summary
from vllm_headaware.tasks import text
from vllm_headaware.tasks.code import MODULES, code_windows
from vllm_headaware.tasks.text import held_out_text, text_windows


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    write_profile(tiny_model)
    return tiny_model


@pytest.fixture(autouse=True)
def _no_runs_of_other_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _words_the_tiny_model_knows(request: pytest.FixtureRequest, monkeypatch: Any) -> None:
    """To its tokenizer real text is one unknown word repeated, and all attention is the same."""
    if "model" in request.fixturenames:
        rng = random.Random(9)
        words = " ".join(f"w{rng.randrange(8, 211)}" for _ in range(9000))
        monkeypatch.setattr(text, "held_out_text", lambda: words)


def quick(capsys: pytest.CaptureFixture[str], model: Path, *options: str) -> dict[str, Any]:
    tasks = "single_needle=300,multi_key=200"
    argv = ["eval", "quick", str(model), "--json", "--tasks", tasks, "--samples", "1"]
    argv += ["--texts", "1", "--kv-sink", "32", "--kv-window", "64"]
    assert main([*argv, *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_says_what_every_method_scored_at_equal_bytes(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = quick(capsys, model)
    assert set(report["tasks"]) == {"single_needle", "multi_key"}
    for result in [*report["tasks"].values(), report["text"]]:
        held = result["bytes"]
        assert set(held) == set(METHODS)
        assert held["full"] > held["headaware"]
        assert held["streamingllm"] == held["h2o"] >= held["headaware"]
        assert result["bytes_ratio"] == held["full"] / held["headaware"]
    for result in report["tasks"].values():
        assert set(result["scores"]) == set(METHODS)
    assert report["unable"] == ["multi_key", "single_needle"], "random weights can do nothing"
    assert report["relative"] is None
    kl = report["text"]["kl"]
    assert kl["full"] == 0
    assert min(kl[name] for name in METHODS[1:]) > 1e-3


def test_heads_that_keep_everything_lose_nothing(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = quick(capsys, model, "--kv-retrieval-share", "1.0", "--kv-retrieval-dtype", "bfloat16")
    assert report["text"]["kl"]["headaware"] == pytest.approx(0, abs=1e-6)
    assert report["text"]["nll"]["headaware"] == pytest.approx(report["text"]["nll"]["full"])


@pytest.mark.slow
def test_finished_runs_are_not_run_again(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quick(capsys, model)
    runs: list[str] = []
    read = measure.read

    def counted(model: Any, methods: Any, prompt: Any) -> Any:
        runs.extend(methods)
        return read(model, methods, prompt)

    monkeypatch.setattr(measure, "read", counted)
    again = quick(capsys, model)
    assert runs == []
    for report in (first, again):
        del report["seconds"]
    assert again == first
    quick(capsys, model, "--kv-window", "130")
    prompts = [prompts_of(1, tokens) for tokens in (300, 200)]
    assert prompts == [3, 3]
    assert [first["tasks"][task]["samples"] for task in first["tasks"]] == prompts
    assert runs.count("headaware") == sum(prompts) + 1
    assert runs.count("full") == 1, "on text, since KL needs its logits; its answers are known"
    runs.clear()
    assert quick(capsys, model, "--fresh")["tasks"] == first["tasks"]
    assert len(runs) == sum(prompts) * 4 + 4


def test_a_baseline_that_is_ahead_is_named() -> None:
    def result(full: float, own: float, streaming: float, h2o: float) -> dict[str, Any]:
        scores = {"full": full, "headaware": own, "streamingllm": streaming, "h2o": h2o}
        per_prompt = {name: [score] * 3 for name, score in scores.items()}
        held = {"full": 300 * (1 + full), "headaware": 100}
        reading = {"full": held["full"], "headaware": 150}
        return {
            **{"scores": scores, "per_prompt": per_prompt},
            **{"bytes": held, "reading_bytes": reading},
        }

    results = {
        "a": result(1.0, 0.75, 0.8, 0.75),
        "b": result(0.5, 0.5, 0.1, 0.6),
        "c": result(0.4, 0.0, 0.3, 0.3),
    }
    report = summary(results)
    assert report["baselines_ahead"] == {"streamingllm": ["a"], "h2o": ["b"]}
    assert report["unable"] == ["c"]
    assert report["relative"] == pytest.approx(1.25 / 1.5)
    assert report["relative_interval"] == pytest.approx([1.25 / 1.5] * 2), "all prompts are alike"
    assert report["bytes_ratio"] == pytest.approx((600 + 450) / 200), "bytes of a and b"
    assert report["reading_bytes_ratio"] == pytest.approx((600 + 450) / 300)
    assert results["a"]["relative"] == 0.75


def test_refusals_are_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "quick", str(model), "--kv-policy", "full"]) == 2
    assert "leave --kv-policy out" in capsys.readouterr().err
    assert main(["eval", "quick", str(model), "--samples", "0"]) == 2
    assert "samples must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "quick", str(model), "--tasks", "poem"])
    assert "'poem' is not one of single_needle" in capsys.readouterr().err


def test_text_splits_are_the_halves_of_the_book() -> None:
    class Letters:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return list(range(len(text))) if text == first else [-i for i in range(len(text))]

    book = held_out_text()
    first = book[: len(book) // 2]
    windows = text_windows(Letters(), split="calibration", count=3, tokens=1000)
    assert [len(w) for w in windows] == [1000] * 3
    assert min(min(w) for w in windows) >= 0
    assert len({token for w in windows for token in w}) == 3000, "passages overlap"
    assert max(max(w) for w in text_windows(Letters(), split="evaluation", count=2, tokens=9)) <= 0
    with pytest.raises(HeadAwareError, match="not enough for 3 passages"):
        text_windows(WordTokenizer(), split="evaluation", count=3, tokens=60000)


def test_code_splits_share_no_module() -> None:
    assert not set(MODULES["calibration"]) & set(MODULES["evaluation"])
    for split in MODULES:
        windows = code_windows(WordTokenizer(), split=split, count=2, tokens=1000)
        assert [len(w) for w in windows] == [1000] * 2
    with pytest.raises(HeadAwareError, match="not enough for 9 passages"):
        code_windows(WordTokenizer(), split="evaluation", count=9, tokens=60000)
    with pytest.raises(HeadAwareError, match="calibration or evaluation"):
        code_windows(WordTokenizer(), split="both", count=1, tokens=9)
