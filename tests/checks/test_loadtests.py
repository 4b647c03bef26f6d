"""Load scenarios: what is sent, what is refused, and what is made of the numbers."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from loadtests import run
from loadtests.bench import BenchError, pool_use
from loadtests.conversations import CHUNK_TOKENS, Conversations
from loadtests.load_report import markdown, page, summarise
from loadtests.load_scenario import Scenario, ScenarioError
from loadtests.run import main

SCENARIOS = Path(__file__).parents[2] / "loadtests" / "scenarios"
MULTI_TURN = (SCENARIOS / "multi_turn.yaml").read_text(encoding="utf-8")
MEASURED = {
    "median_ttft_ms": 10.0,
    "p99_ttft_ms": 20.0,
    "median_tpot_ms": 5.0,
    "p99_tpot_ms": 6.0,
    "median_e2el_ms": 30.0,
    "p99_e2el_ms": 40.0,
    "output_throughput": 7.0,
    "duration": 4.0,
    "request_goodput": 3.5,
    "ttfts": [0.01, 0.02],
    "itls": [[0.005, 0.006], []],
    "kv": [[0.5, 0.25], [1.0, 0.75]],
}


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda p: p.stem)
def test_scenarios_are_accepted_by_the_generator(path: Path, tmp_path: Path) -> None:
    """vllm bench serve's own parser knows every option a scenario gives."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    scenario = Scenario.load(path)
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    trace = scenario.write_trace(tmp_path / "trace.jsonl")
    args = parser.parse_args(scenario.bench_arguments("model", "name", "http://x:1", trace))
    assert args.num_prompts == scenario.requests
    assert args.temperature == 0
    assert args.ignore_eos
    assert args.goodput == [f"ttft:{scenario.ttft_ms:g}", f"tpot:{scenario.tpot_ms:g}"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "mapping"),
        ("a: [", "not YAML"),
        (MULTI_TURN.replace("requests: 24", "requests: 23"), "24 requests"),
        (MULTI_TURN.replace("first_len: 320", "first_len: 321"), "first_len must be a multiple"),
        (MULTI_TURN.replace("think_seconds", "think"), "data: .*think"),
        ("dataset: random\nspeed: 3", r"unknown keys \['speed'\].*missing keys.*'kv_gib'"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=words):
        Scenario.load(path)


def test_a_missing_scenario_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenarios/nothing.yaml"]) == 2
    assert "chat, long_document" in capsys.readouterr().err


def test_a_turn_begins_with_the_turn_before_it() -> None:
    conversations = Conversations(3, 4, 64, 32, 16, spread_seconds=5, think_seconds=10)
    entries = conversations.trace(seed=1)
    assert len(entries) == conversations.requests == 12
    times = [entry["timestamp"] for entry in entries]
    assert times == sorted(times)
    assert times[0] == 0
    by_start: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        assert len(entry["hash_ids"]) * CHUNK_TOKENS == entry["input_length"]
        by_start.setdefault(entry["hash_ids"][0], []).append(entry)
    assert len(by_start) == 3
    seen: set[int] = set()
    for turns in by_start.values():
        assert [turn["input_length"] for turn in turns] == [64, 112, 160, 208]
        assert not seen & set(turns[-1]["hash_ids"]), "conversations share nothing"
        seen |= set(turns[-1]["hash_ids"])
        for before, after in pairwise(turns):
            assert after["hash_ids"][: len(before["hash_ids"])] == before["hash_ids"]
            assert after["timestamp"] - before["timestamp"] == pytest.approx(10_000, abs=2)
    assert conversations.trace(seed=1) == entries
    assert conversations.trace(seed=2) != entries


def test_the_generator_reads_the_trace(tmp_path: Path) -> None:
    """Prompts of vllm's own loader: lengths as asked, and each turn begins with the one before."""
    from vllm.benchmarks.datasets.datasets import TimedTrace

    scenario = Scenario.load(SCENARIOS / "multi_turn.yaml").quick()
    trace = scenario.write_trace(tmp_path / "trace.jsonl")
    labels = ("timestamp", "input_length", "output_length", "hash_ids")
    options = {f"timed_trace_label_{label}": label for label in labels}
    loader = TimedTrace(
        dataset_path=str(trace), timed_trace_chunk_hash_size=CHUNK_TOKENS, **options
    )
    tokenizer: Any = WordTokenizer()
    prompts: list[Any] = [r.prompt for r in loader.sample(tokenizer, scenario.requests)]
    assert [len(prompt) for prompt in prompts] == [320, 320, 480, 480]
    for later in prompts[2:]:
        assert sum(later[:320] == earlier for earlier in prompts[:2]) == 1


class WordTokenizer:
    """The little of a tokenizer that the loader asks for."""

    all_special_ids: ClassVar[list[int]] = [0]

    def get_vocab(self) -> dict[str, int]:
        return {f"w{i}": i for i in range(500)}


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda p: p.stem)
def test_quick_forms_are_smaller(path: Path, tmp_path: Path) -> None:
    scenario = Scenario.load(path)
    quick = scenario.quick()
    assert 2 <= quick.requests < scenario.requests
    trace = quick.write_trace(tmp_path / "trace.jsonl")
    assert trace is None or len(trace.read_text().splitlines()) == quick.requests


@pytest.mark.parametrize(("goodput", "status"), [(1.8, 0), (1.5, 1)])
def test_the_exit_status_is_the_slo_of_the_policy(
    goodput: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chat has 24 requests and wants 90 % of them good; stock's verdict does not count."""

    def measure(scenario: Scenario, name: str, args: Any, policy: list[str]) -> dict[str, Any]:
        stock = name == "stock"
        assert policy == ([] if stock else ["--kv-policy", "headaware"])
        return {**MEASURED, "duration": 12.0, "request_goodput": 2.0 if stock else goodput}

    monkeypatch.setattr(run, "measure", measure)
    given = ["scenarios/chat.yaml", "--against", "stock", "--output", str(tmp_path)]
    assert main(given) == status
    report = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    assert report["summary"]["headaware"]["slo_met"] is (status == 0)
    assert report["summary"]["stock"]["slo_met"]
    assert (tmp_path / "chat.md").exists()
    assert (tmp_path / "chat.html").exists()


def test_a_failure_is_not_a_missed_slo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: Any) -> None:
        raise BenchError("2 of 24 requests failed; see a log")

    monkeypatch.setattr(run, "measure", measure)
    assert main(["scenarios/chat.yaml"]) == 2
    assert "2 of 24 requests failed" in capsys.readouterr().err


def test_numbers_and_verdict() -> None:
    scenario = Scenario.load(SCENARIOS / "mixed_overload.yaml")
    summary = summarise(scenario, MEASURED)
    assert summary["good_share"] == 14 / 16
    assert not summary["slo_met"]
    assert summary["kv_peak_mib"] == 768
    assert summary["kv_mean_mib"] == 512
    better = summarise(scenario, {**MEASURED, "request_goodput": 4.0, "median_ttft_ms": 5.0})
    text = markdown(scenario, {"headaware": better, "stock": summary}, "setting")
    assert "| median TTFT, ms | 5 | 10 | 0.50 |" in text
    assert "headaware: met; stock: MISSED" in text
    shown = page(text, {"headaware": MEASURED, "stock": MEASURED}, scenario)
    assert shown.count("<svg") == 3
    assert "src=" not in shown
    assert "https://" not in shown


def test_pool_use_is_read_from_metrics() -> None:
    lines = [f'vllm:kv_cache_usage_perc{{engine="{e}"}} {v}' for e, v in ((0, 0.25), (1, 0.75))]
    assert pool_use("\n".join([*lines, "other 1"])) == 0.5
