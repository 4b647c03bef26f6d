"""Run `vllm bench serve` against a server, and watch the server's /metrics meanwhile."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from loadtests.load_scenario import Scenario
from testbench.polling import Poller

SAMPLE_SECONDS = 0.5
TIMEOUT_SECONDS = 900


class BenchError(Exception):
    """The load generator failed; the message has its last output."""


def run_bench(
    scenario: Scenario, *, model: str, served_name: str, url: str, folder: Path, name: str
) -> dict[str, Any]:
    """Send a scenario's requests and return what `vllm bench serve` measured.

    Adds "kv": [[seconds since the start, share of the pool's blocks that are held], ...], from
    vllm:kv_cache_usage_perc, which policy and stock servers both have.

    Raises:
        BenchError: the generator failed, took too long, or some requests failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / f"{name}.bench.json", folder / f"{name}.bench.log"
    result.unlink(missing_ok=True)
    trace = scenario.write_trace(folder / f"{name}.trace.jsonl")
    command = [
        str(Path(sys.executable).with_name("vllm")),
        "bench",
        "serve",
        *scenario.bench_arguments(model, served_name, url, trace),
        "--save-result",
        "--save-detailed",
        "--disable-tqdm",
        "--result-dir",
        str(folder),
        "--result-filename",
        result.name,
    ]
    # The generator draws the tokens of a trace by Python's hash of strings.
    environment = {**os.environ, "PYTHONHASHSEED": str(scenario.seed)}
    with PoolWatcher(url) as watcher:
        run_generator(command, log, result, environment)
    measured = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    check_completed(measured["completed"], scenario, log)
    return {**measured, "kv": watcher.samples}


def run_generator(command: list[str], log: Path, result: Path, environment: dict[str, str]) -> None:
    """Run a load generator to its end.

    Raises:
        BenchError: it failed, took too long, or left no result file.
    """
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"no end after {TIMEOUT_SECONDS} s; see {log}") from error
    if done.returncode or not result.exists():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
        raise BenchError(f"{command[0]} ended with status {done.returncode}:\n{tail}")


def check_completed(completed: int, scenario: Scenario, log: Path) -> None:
    """Every request must have been answered.

    Raises:
        BenchError: some were not.
    """
    if completed < scenario.requests:
        failed = scenario.requests - completed
        raise BenchError(f"{failed} of {scenario.requests} requests failed; see {log}")


class PoolWatcher(Poller):
    """Reads vllm:kv_cache_usage_perc in a thread of its own; use as a context manager."""

    def __init__(self, url: str) -> None:
        super().__init__(SAMPLE_SECONDS)
        self.url = url
        self.samples: list[list[float]] = []

    def look(self) -> None:
        """Take one sample: seconds since the start, and the share of the pool in use."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as response:
            text = response.read().decode()
        self.samples.append([time.monotonic() - self.started, pool_use(text)])


def pool_use(metrics: str) -> float:
    """Share (0 to 1) of the blocks that are held, mean over engines, from Prometheus text."""
    found = re.findall(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", metrics, flags=re.MULTILINE)
    return sum(map(float, found)) / max(len(found), 1)
