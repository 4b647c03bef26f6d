"""The quick comparison, end to end on a tiny model, from the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.engine.profiles import write_profile
from tests.eval.tokenizer import WordTokenizer
from vllm_headaware.cli.main import main
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval import text
from vllm_headaware.eval.quick import METHODS
from vllm_headaware.eval.text import held_out_text, text_windows


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    write_profile(tiny_model)
    return tiny_model


@pytest.fixture(autouse=True)
def _words_the_tiny_model_knows(request: pytest.FixtureRequest, monkeypatch: Any) -> None:
    """To its tokenizer real text is one unknown word repeated, and all attention is the same."""
    if "model" in request.fixturenames:
        rng = random.Random(9)
        words = " ".join(f"w{rng.randrange(8, 211)}" for _ in range(9000))
        monkeypatch.setattr(text, "held_out_text", lambda: words)


def quick(capsys: pytest.CaptureFixture[str], model: Path, *options: str) -> dict[str, Any]:
    tasks = "single_needle=300,multi_key=200"
    argv = ["eval", "quick", str(model), "--json", "--tasks", tasks, "--samples", "2", *options]
    assert main([*argv, "--texts", "1"]) == 0
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
    report = quick(capsys, model, "--kv-retrieval-share", "1.0")
    assert report["text"]["kl"]["headaware"] == pytest.approx(0, abs=1e-6)
    assert report["text"]["nll"]["headaware"] == pytest.approx(report["text"]["nll"]["full"])


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
