"""`make monitor`: the server, and a real Prometheus that scrapes it, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from monitoring.prometheus import Prometheus, PrometheusError
from testbench.progress import say
from testbench.server import Server, ServerError, exit_on_sigterm

ROOT = Path(__file__).resolve().parents[1]


def banner(server: Server, prometheus: Prometheus) -> str:
    """Where to look."""
    return f"""
  live page    {server.url}/headaware
  in a terminal  vllm-headaware top {server.url}
  metrics      {server.url}/metrics
  Prometheus   {prometheus.url}/graph?g0.expr=sum+by+(head_class)+(vllm_headaware_kv_class_bytes)
  alerts       {prometheus.url}/alerts
  OpenAI API   {server.url}/v1

Grafana: give it {prometheus.url} as a data source and import deploy/grafana/dashboards/*.json.
Ctrl-C stops both.
"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--prometheus-port", type=int, default=9090)
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument("--folder", type=Path, default=Path(".cache/monitor"))
    args = parser.parse_args()
    exit_on_sigterm()
    server = Server(
        args.model,
        port=args.port,
        log=args.folder / "server.log",
        serve_args=["--kv-policy", args.kv_policy],
    )
    try:
        with (
            server,
            Prometheus(
                [f"127.0.0.1:{server.port}"],
                folder=args.folder / "prometheus",
                port=args.prometheus_port,
                interval_seconds=5,
            ) as prometheus,
        ):
            print(banner(server, prometheus), flush=True)
            server.wait()
    except KeyboardInterrupt:
        say("stopped")
    except (OSError, PrometheusError, ServerError) as error:
        print(f"monitor: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
