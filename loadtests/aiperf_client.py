"""Run aiperf instead of `vllm bench serve`, and bring what it measured into the same form.

aiperf (NVIDIA) wants other versions of what vLLM uses, so it lives in an environment of its own. It
draws other prompts and is heavier on the machine: compare numbers of one generator only.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.bench import PoolWatcher, check_completed, run_generator
from loadtests.conversations import CHUNK_TOKENS
from loadtests.load_scenario import Scenario


def aiperf_arguments(
    scenario: Scenario, model: str, served_name: str, url: str, trace: Path | None
) -> list[str]:
    """Arguments of `aiperf profile`, without where it writes."""
    data = scenario.data
    options: dict[str, Any] = {
        "model": served_name,
        "url": url,
        "endpoint-type": "completions",
        "tokenizer": model,
        "request-count": scenario.requests,
        "random-seed": scenario.seed,
        "workers-max": 2,
        "ui-type": "simple",
    }
    if trace:
        options |= {
            "input-file": trace,
            "custom-dataset-type": "mooncake_trace",
            "isl-block-size": CHUNK_TOKENS,
        }
    else:
        options |= {"osl": data["output_len"], "warmup-request-count": scenario.warmups}
        if scenario.dataset == "random":
            options |= {"isl": data["input_len"], "random-range-ratio": data["range_ratio"]}
        else:
            options |= {
                "isl": data["suffix_len"],
                "prompt-prefix-length": data["prefix_len"],
                "prompt-prefix-pool-size": data["num_prefixes"],
            }
        if scenario.rate is not None:
            options |= {"request-rate": scenario.rate, "request-rate-mode": "poisson"}
        else:
            options["concurrency"] = scenario.concurrency or scenario.requests
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    fixed = ["--fixed-schedule"] if trace else []
    exact = ["--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"]
    return [*arguments, *fixed, *exact, "--streaming", "--no-gpu-telemetry"]


def run_aiperf(
    program: Path,
    scenario: Scenario,
    *,
    model: str,
    served_name: str,
    url: str,
    folder: Path,
    name: str,
) -> dict[str, Any]:
    """Send a scenario's requests; the same numbers as bench.run_bench returns.

    Raises:
        BenchError: aiperf failed, took too long, or some requests failed.
    """
    artifacts, log = folder / f"{name}.aiperf", folder / f"{name}.aiperf.log"
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.mkdir(parents=True)
    trace = scenario.write_trace(folder / f"{name}.trace.jsonl")
    command = [
        *(str(program), "profile"),
        *aiperf_arguments(scenario, model, served_name, url, trace),
        *("--artifact-dir", str(artifacts)),
    ]
    # With this set aiperf takes a tokenizer's folder for a name on the Hub.
    environment = {name: v for name, v in os.environ.items() if name != "HF_HUB_OFFLINE"}
    records_file = artifacts / "profile_export.jsonl"
    with PoolWatcher(url) as watcher:
        run_generator(command, log, records_file, environment)
    lines = records_file.read_text(encoding="utf-8").splitlines()
    measured = measured_from([json.loads(line) for line in lines], scenario)
    check_completed(measured["completed"], scenario, log)
    return {**measured, "kv": watcher.samples}


def measured_from(records: list[dict[str, Any]], scenario: Scenario) -> dict[str, Any]:
    """Numbers of a run, from aiperf's record of every request, under vllm bench's names."""
    good = [
        record
        for record in records
        if not record.get("error")
        and record["metadata"].get("benchmark_phase", "profiling") == "profiling"
    ]

    def each(metric: str) -> list[Any]:
        return [record["metrics"][metric]["value"] for record in good]

    latency = each("request_latency")
    ttft, tpot = each("time_to_first_token"), each("inter_token_latency")
    times = [record["metadata"] for record in good]
    seconds = (
        max(time["request_end_ns"] for time in times)
        - min(time["request_start_ns"] for time in times)
    ) / 1e9
    met = sum(
        a <= scenario.ttft_ms and b <= scenario.tpot_ms for a, b in zip(ttft, tpot, strict=True)
    )
    return {
        "completed": len(good),
        "duration": seconds,
        "median_ttft_ms": float(np.median(ttft)),
        "p99_ttft_ms": float(np.percentile(ttft, 99)),
        "median_tpot_ms": float(np.median(tpot)),
        "p99_tpot_ms": float(np.percentile(tpot, 99)),
        "median_e2el_ms": float(np.median(latency)),
        "p99_e2el_ms": float(np.percentile(latency, 99)),
        "output_throughput": sum(each("output_sequence_length")) / seconds,
        "request_goodput": met / seconds,
        "ttfts": [value / 1000 for value in ttft],
        "itls": [[gap / 1000 for gap in gaps] for gaps in each("inter_chunk_latency")],
    }
