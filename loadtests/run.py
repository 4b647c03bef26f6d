#!/usr/bin/env python3
"""Run a load scenario against the policy and against stock vLLM, on equal KV memory.

Writes NAME.json, NAME.md and NAME.html, prints the Markdown, and ends with status 0 when the policy
server meets the scenario's SLO, 1 when it does not, 2 when something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from loadtests.aiperf_client import run_aiperf
from loadtests.bench import BenchError, run_bench
from loadtests.load_report import markdown, page, summarise
from loadtests.load_scenario import Scenario, ScenarioError
from testbench.progress import say
from testbench.server import SERVED_NAME, Server, ServerError, exit_on_sigterm

HERE = Path(__file__).resolve().parent
AIPERF = HERE.parent / ".cache" / "aiperf" / "bin" / "aiperf"
DEMO = HERE.parent / ".cache" / "models" / "SmolLM2-135M-Instruct"

EPILOG = """\
examples:
  python -m loadtests.run scenarios/long_document.yaml --against stock
  python -m loadtests.run scenarios/chat.yaml --model ./model --serve-args=--enforce-eager
"""


def measure(
    scenario: Scenario, name: str, args: argparse.Namespace, policy: list[str]
) -> dict[str, Any]:
    """Start one server, send the load, stop it."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(scenario.kv_gib)
    serve_args = [*policy, *args.serve_args]
    say(f"{name}: starting a server with {scenario.kv_gib} GiB of KV memory")
    log = args.output / f"{scenario.name}.{name}.log"
    with Server(args.model, port=0, log=log, serve_args=serve_args) as server:
        say(f"{name}: sending {scenario.requests} requests")
        generate = partial(run_aiperf, AIPERF) if args.client == "aiperf" else run_bench
        return generate(
            scenario,
            model=str(args.model),
            served_name=SERVED_NAME,
            url=server.url,
            folder=args.output,
            name=f"{scenario.name}.{name}",
        )


def find_scenario(given: Path) -> Path:
    """The file as given, or relative to this folder."""
    return given if given.exists() else HERE / given


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", type=Path, help="YAML file, such as scenarios/chat.yaml")
    parser.add_argument("--against", choices=["stock"], help="measure stock vLLM as well")
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder (default: the demo)")
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument("--output", type=Path, default=Path(".cache/loadtests"))
    parser.add_argument(
        "--serve-args",
        nargs="*",
        default=["--enforce-eager"],
        help="further arguments for both servers (default --enforce-eager: starts faster)",
    )
    parser.add_argument(
        "--client",
        choices=["vllm", "aiperf"],
        default="vllm",
        help="load generator: `vllm bench serve`, or aiperf from `make aiperf-tool`",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the requests: a try, not a measurement"
    )
    parser.add_argument("--json", action="store_true", help="print JSON rather than Markdown")
    args = parser.parse_args(argv)
    exit_on_sigterm()
    if args.client == "aiperf" and not AIPERF.exists():
        parser.error(f"{AIPERF} does not exist; run `make aiperf-tool`")
    try:
        scenario = Scenario.load(find_scenario(args.scenario))
        if args.quick:
            scenario = scenario.quick()
        raw = {
            args.kv_policy: measure(scenario, args.kv_policy, args, ["--kv-policy", args.kv_policy])
        }
        if args.against:
            raw["stock"] = measure(scenario, "stock", args, [])
    except (BenchError, ScenarioError, ServerError) as error:
        print(f"loadtests: error: {error}", file=sys.stderr)
        return 2
    summaries = {name: summarise(scenario, measured) for name, measured in raw.items()}
    setting = (
        f"Model {args.model.name}, float32, {scenario.kv_gib} GiB of KV memory for each server,"
        f" {scenario.requests} requests, `vllm serve {' '.join(args.serve_args)}`."
        + (" Load from aiperf." if args.client == "aiperf" else "")
        + (" A quick try, not a measurement." if args.quick else "")
    )
    text = markdown(scenario, summaries, setting)
    base = args.output / scenario.name
    base.with_suffix(".md").write_text(text, encoding="utf-8")
    base.with_suffix(".html").write_text(page(text, raw, scenario), encoding="utf-8")
    result = {"scenario": scenario.name, "summary": summaries, "setting": setting}
    base.with_suffix(".json").write_text(json.dumps({**result, "raw": raw}), encoding="utf-8")
    print(json.dumps(result) if args.json else text)
    say(f"wrote {base}.json, .md and .html")
    return 0 if summaries[args.kv_policy]["slo_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
