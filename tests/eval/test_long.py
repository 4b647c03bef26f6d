"""Fidelity in the real engine: prompts, what is made of their results, and the command."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from testbench.random_profile import write_profile
from tests.eval.tokenizer import WordTokenizer
from vllm_headaware.cli.eval_long import as_arguments, parse_side
from vllm_headaware.cli.main import main
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval import long
from vllm_headaware.tasks import text
from vllm_headaware.tasks.given import Given
from vllm_headaware.tasks.long import SECOND_TURN, make_long
from vllm_headaware.tasks.lookups import LOOKUPS
from vllm_headaware.tasks.samples import make_samples


def row(losses: list[float], ranks: list[int], tops: list[dict[str, float]], held: int) -> Any:
    return {"losses": losses, "ranks": ranks, "tops": tops, "bytes": held}


@pytest.mark.parametrize("task", ["table", "log", "trail_3", "trail_4"])
def test_what_is_looked_up_stands_in_the_prompt_once(task: str) -> None:
    for one in make_samples(WordTokenizer(), task, split="evaluation", count=3, tokens=700):
        assert len(one.prompt_token_ids) <= 700
        for answer in one.answers:
            assert answer in one.prompt_text
            assert answer in one.reply
        if task in ("table", "log"):
            assert one.prompt_text.count(one.answers[0]) == 1


@pytest.mark.parametrize("task", LOOKUPS)
def test_splits_of_lookups_share_nothing(task: str) -> None:
    found = []
    for split in ("calibration", "evaluation"):
        made = make_samples(WordTokenizer(), task, split=split, count=20, tokens=700)
        words = {w for one in made for w in re.findall(r"\b[A-Z]{4}\b|\d{5}", one.prompt_text)}
        found.append(words)
    assert min(map(len, found)) > 300
    assert found[0].isdisjoint(found[1])


def test_an_edit_repeats_a_function_with_one_name_changed() -> None:
    for one in make_samples(WordTokenizer(), "edit", split="evaluation", count=3, tokens=700):
        text, question = one.prompt_text.rsplit("\n\n", 1)
        name, old, new = (question.split()[i].rstrip(".") for i in (3, 8, 10))
        renamed = f"def {name}({one.reply}"
        assert new in renamed
        assert new not in text
        assert renamed.replace(new, old) in text


def test_a_second_turn_begins_with_the_first() -> None:
    for one in make_long(
        WordTokenizer(), [SECOND_TURN], split="evaluation", count=3, tokens=400, seed=1
    ):
        assert 0.8 * len(one.prompt) < len(one.before) < len(one.prompt)
        assert one.prompt[: len(one.before)] == one.before


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(HeadAwareError, match="riddles; there are needles"):
        make_long(WordTokenizer(), ["riddles"], split="evaluation", count=1, tokens=300, seed=0)


def test_what_is_concluded() -> None:
    prompts = [Given("needles", [1], [2, 3]), Given("long_answer", [1], [2] * 8)]
    half = math.log(0.5)
    full = [
        row([0.1, 0.3], [1, 1], [{"2": half, "9": half}, {"3": half}], 800),
        row([1.0] * 8, [1] * 8, [{"2": half}] * 8, 800),
    ]
    own = [
        row([0.2, 0.6], [1, 2], [{"2": half - 1, "8": half}, {"3": half}], 100),
        row([1.0] * 6 + [1.5] * 2, [1] * 8, [{"2": half}] * 8, 100),
    ]
    found = long.conclude(prompts, {"full": full, "own": own}, 32)
    needles, answers = found["kinds"]["needles"]["own"], found["kinds"]["long_answer"]["own"]
    assert needles["lost"] == pytest.approx(0.2)
    assert (needles["first"], needles["exact"]) == (0.5, 0.0)
    assert needles["kl"] == pytest.approx(0.25), "half of one nat at one of two places"
    assert answers["drift"] == pytest.approx(0.5)
    assert found["scores"]["own"]["relative"] == pytest.approx(0.75)
    assert found["scores"]["own"]["fewer_than_16_bit"] == pytest.approx(4.0)
    assert found["unable"] == []


def test_lengths_leave_room_for_answers() -> None:
    assert long.lengths_of(8192, ["needles"]) == (2048, 4096, 8056)
    assert long.lengths_of(8192, ["long_answer"])[-1] == 8192 - 2000 - 8


def test_sides_are_arguments_of_vllm() -> None:
    assert as_arguments(KVPolicyConfig("headaware")) == {"kv_policy": "headaware"}
    side = parse_side("narrow:window=256,local_dtype=int4")
    assert side.options == {"kv_policy": "headaware", "kv_window": 256, "kv_local_dtype": "int4"}
    assert parse_side("sinks:policy=streamingllm").options == {"kv_policy": "streamingllm"}
    for wrong in ("narrow", "narrow:window", ":window=3", "narrow:windows=256"):
        with pytest.raises(HeadAwareError):
            parse_side(wrong)


@pytest.mark.engine
@pytest.mark.slow
def test_the_command_runs_engines_once_and_goes_on_where_it_was(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_profile(tiny_model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dice = random.Random(9)
    words = " ".join(f"w{dice.randrange(8, 211)}" for _ in range(9000))
    monkeypatch.setattr(text, "held_out_text", lambda: words)
    asked = ["eval", "long", str(tiny_model), "--json", "--kinds", "second_turn,copies"]
    asked += ["--lengths", "300", "--samples", "1", "--kv-sink", "32", "--kv-window", "64"]
    asked += ["--kv-induction-window", "128", "-o", str(tmp_path / "out")]
    assert main(asked) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    full, own = report["scores"]["full"], report["scores"]["headaware"]
    assert full["bytes"] > own["bytes"] > 0
    copies = report["kinds"]["copies"]["headaware"]
    assert copies["lost"] != 0, "what is hidden matters to a random model too"
    assert copies["kl"] != 0
    assert "| copies" in (tmp_path / "out" / "long.md").read_text()
    assert (tmp_path / "out" / "long.png").stat().st_size > 10_000

    def no_engine(*_: Any) -> Any:
        raise AssertionError("everything is known already")

    monkeypatch.setattr(long, "serve", no_engine)
    assert main(asked) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {**again, "seconds": 0} == {**report, "seconds": 0}
