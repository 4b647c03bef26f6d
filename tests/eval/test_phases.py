"""The three phases on a tiny model: who takes part, what is written, going on after a stop."""

from __future__ import annotations

import json
import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from testbench.random_profile import make_profile, write_profile
from vllm_headaware.cli.main import main
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval import measure, phases, phases_run
from vllm_headaware.eval.baselines import headaware_within
from vllm_headaware.eval.phases import Subject, ablation_contenders, budgets_work, by_lot
from vllm_headaware.eval.phases_report import table
from vllm_headaware.eval.target import read_target
from vllm_headaware.plan import make_plan
from vllm_headaware.tasks import text


@pytest.fixture
def subject(tiny_model: Path) -> Subject:
    return Subject(read_target(tiny_model, make_profile(tiny_model)), 3, 1, "evaluation", 0)


@pytest.fixture
def small(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model, its profile, and phases of a size that suits it."""
    write_profile(tiny_model)
    rng = random.Random(9)
    words = " ".join(f"w{rng.randrange(8, 211)}" for _ in range(2000))
    monkeypatch.setattr(text, "held_out_text", lambda: words)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (phases, phases_run):
        monkeypatch.setattr(module, "TEXT_TOKENS", 300)
    monkeypatch.setattr(phases, "TEXT_SCORED", 20)
    monkeypatch.setattr(phases, "LENGTHS", (700, 1300, 5000))
    monkeypatch.setattr(phases, "BUDGETS", {400: (4 * 224, 4 * 256)})
    monkeypatch.setattr(phases, "BUDGET_TASKS", ("single_needle",))
    monkeypatch.setattr(phases, "ABLATION_TOKENS", 300)
    return tiny_model


@pytest.mark.slow
def test_files_rows_and_pictures(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    argv = ["eval", "phases", str(small), "-o", str(out), "--samples", "1", "--texts", "1"]
    argv += ["--kv-window", "256"]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])["models"][0]
    folder = out / small.name
    assert json.loads((folder / "phases.json").read_text()) == report
    for phase in "123":
        assert (folder / f"phase{phase}.png").read_bytes().startswith(b"\x89PNG")
    lengths = report["phases"]["1"]["rows"]
    assert {row["tokens"] for row in lengths} == {700, 1300}, "5,000 tokens do not fit"
    held = {(row["tokens"], row["method"]): row["bytes"] for row in lengths}
    assert held[700, "headaware"] <= held[700, "h2o"] == held[700, "streamingllm"]
    assert held[1300, "h2o"] == pytest.approx(held[700, "h2o"], rel=0.1), "a block more or less"
    assert held[700, "headaware"] < held[1300, "headaware"] < held[1300, "full"]
    text_page = (folder / "phases.md").read_text()
    assert text_page.count("\n## Phase") == 3
    assert "| 400 | headaware 896 |" in text_page

    def fail(*_: Any) -> None:
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(measure, "read", fail)
    assert main(argv) == 0
    assert "text KL" in capsys.readouterr().out
    assert main([*argv, "--phases", "4"]) == 2


@pytest.mark.parametrize("tokens", [700, 2048])
def test_headaware_within_takes_all_heads_that_fit(subject: Subject, tokens: int) -> None:
    config = KVPolicyConfig("headaware", induction_share=0.0, sink=20, window=40)
    geometry, profile = subject.target.geometry, subject.target.profile
    fewest = make_plan(
        KVPolicyConfig("headaware", retrieval_share=1 / 16, induction_share=0, sink=20, window=40),
        geometry,
        profile.scores,
    ).request_bytes(tokens)
    dense = geometry.head_token_bytes * geometry.num_heads_total * tokens
    held = (fewest + dense) // 2
    plan = headaware_within(held, config, geometry, profile, tokens)
    assert plan.request_bytes(tokens) <= held
    heads = plan.classes[0].num_heads
    more = make_plan(
        KVPolicyConfig(
            "headaware", retrieval_share=(heads + 1) / 16, induction_share=0, sink=20, window=40
        ),
        geometry,
        profile.scores,
    )
    assert more.request_bytes(tokens) > held
    with pytest.raises(HeadAwareError, match="cannot hold"):
        headaware_within(fewest - 1, config, geometry, profile, tokens)


def test_budgets_bind_every_method(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "BUDGETS", {1500: (384, 2048, 2560), 8000: (4096,)})
    work = budgets_work(subject)
    assert {tokens for _, tokens, _ in work} == {1500}, "8,000 tokens do not fit"
    for _, _, contenders in work:
        assert "headaware 384" not in contenders, "no plan is so small"
        for budget in (2048, 2560):
            own, streaming, h2o = (
                contenders[f"{name} {budget}"] for name in ("headaware", "streamingllm", "h2o")
            )
            assert own.held_bytes <= streaming.held_bytes == h2o.held_bytes
            assert budget // 4 <= h2o.options["budget"] <= budget // 4 + 64, "rounded to blocks"


def test_ablations_change_one_thing(subject: Subject) -> None:
    contenders = ablation_contenders(subject, 1512)
    held = {name: c.held_bytes for name, c in contenders.items()}
    whole = held["+ k8v4 = headaware"]
    assert held["full"] > held["+ classes"] > whole > held["- k8v4 (int4 instead)"]
    assert held["- ranking (heads by lot)"] == whole == held["- gate (ranked by copy score)"]
    assert held["- answers' gate (that of all rows)"] == whole
    assert held["- classes (one window for all)"] >= whole
    assert held["- sinks"] < whole > held["- wide windows (64)"]
    assert held["with an induction class"] > whole
    assert len({c.digest for c in contenders.values()}) == len(contenders)


def test_lot_deals_the_same_scores_to_other_heads(subject: Subject) -> None:
    profile = subject.target.profile
    dealt = by_lot(profile, 1)
    for name in ("gate", "answer", "induction"):
        assert dealt.scores[name] != profile.scores[name]
        before, after = (sorted(chain(*p.scores[name])) for p in (profile, dealt))
        assert after == before
    assert by_lot(profile, 1) == dealt != by_lot(profile, 2)


def test_tables_have_a_column_per_task() -> None:
    def row(task: str, method: str, score: float) -> dict[str, Any]:
        return {
            **{"task": task, "tokens": 1500, "samples": 6, "method": method},
            **{"bytes": 2_500_000, "bytes_ratio": 4.0, "score": score},
        }

    lines = table("2", {"rows": [row("a", "h2o 256", 0.5), row("b", "h2o 256", 1.0)]}).split("\n")
    assert lines[0] == "| tokens | method | bytes | full / held | a | b | prompts per task |"
    assert lines[2] == "| 1,500 | h2o 256 | 2.50 MB | 4.00 | 0.50 | 1.00 | 6 |"
    assert len(lines) == 3
