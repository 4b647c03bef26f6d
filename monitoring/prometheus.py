"""A real Prometheus process that scrapes servers on this machine, with the rules of deploy/."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

PROMETHEUS_DIR = Path(__file__).parents[1] / "deploy" / "prometheus"
START_TIMEOUT_SECONDS = 30.0


class PrometheusError(Exception):
    """Prometheus is not installed, did not start, or refused a query."""


class Prometheus:
    """A Prometheus process; use as a context manager.

    Args:
        targets: host:port of the servers to scrape.
        folder: gets its configuration, data and log; old data there goes.
        port: port to listen on, on this machine only.
        interval_seconds: between scrapes and between evaluations.

    Raises:
        PrometheusError: on entering, when it is not ready in time.
    """

    def __init__(
        self, targets: Sequence[str], *, folder: Path, port: int, interval_seconds: int = 1
    ) -> None:
        self.targets, self.folder, self.port = list(targets), folder, port
        self.interval_seconds = interval_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def configuration(self) -> dict[str, Any]:
        """deploy/prometheus/prometheus.yml with our targets and interval."""
        config = yaml.safe_load((PROMETHEUS_DIR / "prometheus.yml").read_text(encoding="utf-8"))
        interval = f"{self.interval_seconds}s"
        config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
        config["rule_files"] = [str(PROMETHEUS_DIR / pattern) for pattern in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": self.targets}]
        return config

    def __enter__(self) -> Prometheus:
        program = shutil.which("prometheus")
        if program is None:
            raise PrometheusError("prometheus is not installed; run `make monitoring-tools`")
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self.configuration()), encoding="utf-8")
        with (self.folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(self.url + "/-/ready", timeout=5).close()
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise PrometheusError(f"did not start; see {self.folder / 'prometheus.log'}")
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Result of an instant query: [{"metric": labels, "value": [time, text]}, ...].

        Raises:
            PrometheusError: the expression is refused.
        """
        return self._get("query", query=expression, **({} if at is None else {"time": at}))

    def query_range(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """Result of a range query: [{"metric": labels, "values": [[time, text], ...]}, ...].

        Raises:
            PrometheusError: the expression is refused.
        """
        step = max(self.interval_seconds, (end - start) / 500)
        return self._get("query_range", query=expression, start=start, end=end, step=step)

    def alerts(self) -> list[dict[str, Any]]:
        """Pending and firing alerts."""
        return self._get("alerts")["alerts"]

    def rule_faults(self) -> list[str]:
        """Names of rules that could not be evaluated, with the reason."""
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in self._get("rules")["groups"]
            for rule in group["rules"]
            if rule["health"] != "ok"
        ]

    def _get(self, path: str, **parameters: Any) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                answer = json.load(response)["data"]
        except urllib.error.HTTPError as error:
            reason = json.loads(error.read()).get("error", error)
            raise PrometheusError(f"{parameters.get('query', path)}: {reason}") from error
        return answer["result"] if path.startswith("query") else answer


def finite_points(series: Sequence[dict[str, Any]]) -> int:
    """Points of a range result that are numbers."""
    return sum(math.isfinite(float(text)) for one in series for _, text in one.get("values", []))
