"""aiperf's records become the numbers that `vllm bench serve` gives; its options exist."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from loadtests.aiperf_client import aiperf_arguments, measured_from
from loadtests.load_report import markdown, page, summarise
from loadtests.load_scenario import Scenario
from loadtests.run import AIPERF

SCENARIOS = Path(__file__).parents[2] / "loadtests" / "scenarios"
SECOND = 1_000_000_000


def record(start: float, ttft: float, gaps: list[float], **more: Any) -> dict[str, Any]:
    """One line of profile_export.jsonl; times in milliseconds, start in seconds."""
    end = start + (ttft + sum(gaps)) / 1000
    return {
        "metadata": {
            "request_start_ns": int(start * SECOND),
            "request_end_ns": int(end * SECOND),
            "benchmark_phase": "profiling",
        },
        "metrics": {
            "time_to_first_token": {"value": ttft, "unit": "ms"},
            "inter_token_latency": {"value": sum(gaps) / len(gaps), "unit": "ms"},
            "request_latency": {"value": ttft + sum(gaps), "unit": "ms"},
            "inter_chunk_latency": {"value": gaps, "unit": "ms"},
            "output_sequence_length": {"value": len(gaps) + 1, "unit": "tokens"},
        },
        **more,
    }


def test_records_become_numbers() -> None:
    scenario = Scenario.load(SCENARIOS / "chat.yaml")
    slow = record(12.0, 1000.0, [400.0, 400.0])
    failed = {**record(11.0, 1.0, [1.0]), "error": {"message": "refused"}}
    warmup = record(1.0, 1.0, [1.0])
    warmup["metadata"]["benchmark_phase"] = "warmup"
    records = [warmup, record(10.0, 500.0, [100.0, 300.0]), slow, failed]
    measured = measured_from(records, scenario)
    assert measured["completed"] == 2
    assert measured["duration"] == pytest.approx(3.8)
    assert measured["median_ttft_ms"] == 750
    assert measured["median_tpot_ms"] == 300
    assert measured["median_e2el_ms"] == 1350
    assert measured["output_throughput"] == pytest.approx(6 / 3.8)
    assert measured["request_goodput"] == pytest.approx(1 / 3.8), "TPOT of one is beyond 300 ms"
    assert measured["itls"][0] == [0.1, 0.3]
    measured["kv"] = [[0.0, 0.5]]
    summary = summarise(scenario, measured)
    assert "median TTFT" in markdown(scenario, {"headaware": summary}, "setting")
    assert page("text", {"headaware": measured}, scenario).count("<svg") == 3


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_scenario_has_arguments(path: Path, tmp_path: Path) -> None:
    scenario = Scenario.load(path)
    trace = scenario.write_trace(tmp_path / "trace.jsonl")
    arguments = aiperf_arguments(scenario, "model", "name", "http://x:1", trace)
    assert arguments[arguments.index("--request-count") + 1] == str(scenario.requests)
    assert ("--fixed-schedule" in arguments) is (trace is not None)


@pytest.mark.slow
@pytest.mark.skipif(not AIPERF.exists(), reason="needs aiperf: run `make aiperf-tool`")
def test_aiperf_knows_every_option(tmp_path: Path) -> None:
    text = subprocess.run(
        [AIPERF, "profile", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "300"},
    ).stdout
    for path in SCENARIOS.glob("*.yaml"):
        scenario = Scenario.load(path)
        trace = scenario.write_trace(tmp_path / "trace.jsonl")
        for word in aiperf_arguments(scenario, "model", "name", "http://x:1", trace):
            assert not word.startswith("--") or word in text, word
