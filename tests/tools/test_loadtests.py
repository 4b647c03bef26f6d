"""Load scenarios: what is sent, what is refused, and what is made of the numbers."""

from pathlib import Path

import pytest
from bench import pool_use
from load_report import markdown, page, summarise
from load_scenario import Scenario, ScenarioError
from run import main

SCENARIOS = Path(__file__).parents[2] / "loadtests" / "scenarios"
MEASURED = {
    "median_ttft_ms": 10.0,
    "p99_ttft_ms": 20.0,
    "median_tpot_ms": 5.0,
    "p99_tpot_ms": 6.0,
    "output_throughput": 7.0,
    "duration": 4.0,
    "request_goodput": 3.5,
    "ttfts": [0.01, 0.02],
    "itls": [[0.005, 0.006], []],
    "kv": [[0.5, 0.25], [1.0, 0.75]],
}


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda p: p.stem)
def test_scenarios_are_accepted_by_the_generator(path: Path) -> None:
    """vllm bench serve's own parser knows every option a scenario gives."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    scenario = Scenario.load(path)
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    args = parser.parse_args(scenario.bench_arguments("model", "name", "http://x:1"))
    assert args.num_prompts == scenario.requests
    assert args.temperature == 0
    assert args.ignore_eos
    assert args.goodput == [f"ttft:{scenario.ttft_ms:g}", f"tpot:{scenario.tpot_ms:g}"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "mapping"),
        ("a: [", "not YAML"),
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
