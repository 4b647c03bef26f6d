"""`make observe`: server, Prometheus, one load scenario, every query, and the page in Chromium.

The last line on stdout is one JSON object; its `ok` is also the exit status:
  panels, panels_with_data   panels of all dashboards; those whose every query returned numbers
  rules_ok                   every recording and alert rule evaluated without an error
  page_ok                    no console error, every head shown, reachable with the arrow keys
  moments_compared           censuses seen by the page, the JSON and Prometheus; all had to agree
  scrape_seconds             median duration of a scrape under load, by Prometheus' clock; _p90 and
                             _max likewise; _idle before the load: the rest is waiting for a core
  own_render_seconds         processor time to render the policy's families, once per scrape
  own_update_seconds         the same to set them from a census, twice a second
  series                     series that Prometheus took from the server; series_own: the policy's
Progress is on stderr. Pictures go to .cache/observe. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from checks.page_check import LivePageCheck
from loadtests.bench import run_bench
from loadtests.load_scenario import Scenario
from monitoring.cost import own_cost
from monitoring.panels import DASHBOARDS
from monitoring.preview import draw
from monitoring.prometheus import Prometheus, finite_points
from monitoring.queries import QUERIES, outside_grafana
from monitoring.scalers import scaler_queries
from testbench.progress import elapsed_seconds, say
from testbench.server import SERVED_NAME, Server, exit_on_sigterm, free_port

ROOT = Path(__file__).resolve().parents[1]
SCRAPE_LIMIT_SECONDS = 0.05
SETTLE_SECONDS, IDLE_SECONDS = 4.0, 6.0
"""First Chromium starts, on the same cores; then nothing happens."""


def scrape_seconds(prometheus: Prometheus, start: float, end: float) -> dict[str, float]:
    """Duration of scrapes between two moments (Unix seconds): median, 90th percentile, longest."""
    window = f"scrape_duration_seconds[{end - start:.0f}s]"
    how = {"": "quantile_over_time(0.5, ", "_p90": "quantile_over_time(0.9, "}
    how["_max"] = "max_over_time("
    return {
        f"scrape_seconds{name}": float(prometheus.query(f"{f}{window})", end)[0]["value"][1])
        for name, f in how.items()
    }


def panels_without_data(prometheus: Prometheus, start: float, end: float) -> list[str]:
    """Panels with a query that returns no number between start and end (Unix seconds)."""
    return [
        f"{panel.title}: {name}"
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for name in panel.queries
        if not finite_points(prometheus.query_range(outside_grafana(QUERIES[name]), start, end))
    ]


def moments(prometheus: Prometheus, start: float, end: float) -> dict[float, tuple[float, float]]:
    """Census time -> (bytes held, sum over heads and pending), as Prometheus has them."""

    def values(expression: str) -> dict[float, float]:
        series = prometheus.query_range(expression, start, end)
        return {t: float(text) for one in series for t, text in one["values"]}

    at = values("vllm_headaware_census_timestamp_seconds")
    used = values("sum(vllm_headaware_kv_used_bytes)")
    heads = values(
        "sum(vllm_headaware_kv_head_bytes)"
        ' + sum(vllm_headaware_kv_class_bytes{head_class="pending"})'
    )
    return {at[t]: (used[t], heads[t]) for t in at.keys() & used.keys() & heads.keys()}


def disagreements(
    seen: dict[float, tuple[float, float]], stored: dict[float, tuple[float, float]]
) -> tuple[int, list[str]]:
    """How many censuses with something held both sides know, and those that differ."""
    both = [at for at in seen.keys() & stored.keys() if stored[at][0] > 0]
    wrong = [
        f"at {at}: page {seen[at]}, Prometheus {stored[at]}"
        for at in both
        if max(*seen[at], *stored[at]) - min(*seen[at], *stored[at]) > 1
    ]
    return len(both), wrong


def observe(model: str, scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Everything; see the module's text for what it returns."""
    failures: list[str] = []
    server = Server(
        model,
        port=0,
        log=folder / "server.log",
        serve_args=["--kv-policy", "headaware", "--enforce-eager"],
    )
    say("starting the server and Prometheus")
    with (
        server,
        Prometheus(
            [f"127.0.0.1:{server.port}"], folder=folder / "prometheus", port=free_port()
        ) as prometheus,
        LivePageCheck(server.url, folder) as page,
    ):
        time.sleep(SETTLE_SECONDS)
        idle_start = time.time()
        time.sleep(IDLE_SECONDS)
        start = time.time()
        bench: dict[str, Any] = {}

        def load() -> None:
            bench.update(
                run_bench(
                    scenario,
                    model=model,
                    served_name=SERVED_NAME,
                    url=server.url,
                    folder=folder,
                    name="load",
                )
            )

        say(f"load scenario {scenario.name}: {scenario.requests} requests")
        loading = threading.Thread(target=load)
        loading.start()
        page.watch(until=lambda: not loading.is_alive())
        loading.join()
        time.sleep(3)
        end = time.time()
        say("asking Prometheus every query of every panel")
        failures += [] if bench else ["the load generator failed; its message is above"]
        failures += page.failures
        empty = panels_without_data(prometheus, start, end)
        failures += [f"no data: {name}" for name in empty]
        failures += [
            f"no data for a scaler: {query}"
            for query in scaler_queries(SERVED_NAME)
            if not finite_points(prometheus.query_range(query, start, end))
        ]
        rule_faults = prometheus.rule_faults()
        failures += rule_faults
        compared, wrong = disagreements(page.seen, moments(prometheus, start, end))
        failures += wrong
        if compared == 0:
            failures.append("no census was seen by both the page and Prometheus under load")
        scrape = scrape_seconds(prometheus, start, end)
        idle = scrape_seconds(prometheus, idle_start, start)["scrape_seconds"]
        if scrape["scrape_seconds"] > SCRAPE_LIMIT_SECONDS:
            failures.append(f"a scrape takes {scrape['scrape_seconds']:.3f} s")
        render, update, own_series = own_cost(json.loads(server.get("/headaware/plan.json")))
        series = int(prometheus.query("scrape_samples_scraped", end)[0]["value"][1])
        say("drawing previews (not Grafana)")
        for dashboard in DASHBOARDS:
            draw(dashboard, prometheus, start, end, folder / f"{dashboard.uid}.png")
    panels = sum(len(dashboard.panels) for dashboard in DASHBOARDS)
    return {
        "ok": not failures,
        "panels": panels,
        "panels_with_data": panels - len({name.rpartition(": ")[0] for name in empty}),
        "rules_ok": not rule_faults,
        "page_ok": not page.failures,
        "moments_compared": compared,
        **scrape,
        "scrape_seconds_idle": idle,
        "own_render_seconds": render,
        "own_update_seconds": update,
        "series": series,
        "series_own": own_series,
        "failures": failures,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument(
        "--scenario", type=Path, default=ROOT / "loadtests" / "scenarios" / "observe.yaml"
    )
    parser.add_argument("--folder", type=Path, default=Path(".cache/observe"))
    args = parser.parse_args()
    exit_on_sigterm()
    try:
        result = observe(args.model, Scenario.load(args.scenario), args.folder)
    except Exception as error:
        result = {"ok": False, "failures": [f"{type(error).__name__}: {error}"]}
    for failure in result["failures"]:
        say(f"FAILED {failure}")
    print(json.dumps({**result, "seconds": round(elapsed_seconds(), 1)}), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
