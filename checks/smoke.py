"""`make smoke`: the real server, then headaware and stock vLLM measured one after the other.

The last line on stdout is one JSON object; its `ok` is also the exit status:
  kv_bytes_8k, kv_bytes_8k_stock   blocks held by one 8,192-token request x bytes per block
  needle_headaware, needle_full    accuracy on 20 held-out needle prompts of 2,000 tokens
  decode_ratio                     decode tokens/s, 8 requests at 4k context, headaware over stock
Progress is on stderr. Needs about 15 minutes and an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from checks.http_checks import HttpChecks
from testbench.one_side import run_side
from testbench.progress import elapsed_seconds, say
from testbench.server import Server, exit_on_sigterm

KV_BYTES_LIMIT = 0.4
NEEDLE_MARGIN = 0.05
DECODE_RATIO = 1.6


def check_server(model: str, policy: str | None, log: Path) -> dict[str, Any]:
    """Start the server on a free port, run the HTTP checks, stop it."""
    args = ["--kv-policy", policy] if policy else []
    say(f"server: starting vllm serve {' '.join(args)} (log: {log})")
    with Server(model, port=0, log=log, serve_args=args) as server:
        say(f"server: healthy at {server.url}")
        checks = HttpChecks(server, model, metrics=policy is not None)
        results = checks.run_all()
    say("server: stopped")
    return {"checks": results, **checks.numbers}


def probe(model: str, policy: str | None) -> dict[str, Any]:
    """Run checks/probe.py on an engine of its own; see run_side()."""
    asked = ["--kv-policy", policy] if policy else []
    return run_side("checks.probe", ["--model", model, *asked, "--json"])


def judge(http: dict[str, Any], ours: dict[str, Any], stock: dict[str, Any]) -> dict[str, Any]:
    """The numbers side by side, and everything that is not as it should be."""
    numbers = {
        "kv_bytes_8k": ours["kv8k"]["bytes"],
        "kv_bytes_8k_stock": stock["kv8k"]["bytes"],
        "kv_bytes_ratio": ours["kv8k"]["bytes"] / stock["kv8k"]["bytes"],
        "needle_full": stock["needle"]["accuracy"],
        "needle_headaware": ours["needle"]["accuracy"],
        "decode_ratio": ours["decode"]["tokens_per_second"] / stock["decode"]["tokens_per_second"],
        "decode_tokens_per_second": ours["decode"]["tokens_per_second"],
        "decode_tokens_per_second_stock": stock["decode"]["tokens_per_second"],
    }
    failures = [f"{name}: {what}" for name, what in http["checks"].items() if what != "ok"]
    if numbers["kv_bytes_ratio"] > KV_BYTES_LIMIT:
        failures.append(f"kv_bytes_8k is more than {KV_BYTES_LIMIT} of stock")
    if numbers["needle_headaware"] < numbers["needle_full"] - NEEDLE_MARGIN:
        failures.append(f"needle_headaware is more than {NEEDLE_MARGIN} below needle_full")
    if numbers["decode_ratio"] < DECODE_RATIO:
        failures.append(f"decode_ratio is below {DECODE_RATIO}")
    return {"ok": not failures, **numbers, "failures": failures}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--kv-policy", default="headaware", help="`none` compares stock to itself")
    parser.add_argument("--log", type=Path, default=Path(".cache/smoke-server.log"))
    args = parser.parse_args()
    exit_on_sigterm()
    policy = None if args.kv_policy == "none" else args.kv_policy

    raw: dict[str, Any] = {}
    try:
        raw["http"] = check_server(args.model, policy, args.log)
        raw["headaware"] = probe(args.model, policy)
        raw["stock"] = probe(args.model, None)
        result = judge(raw["http"], raw["headaware"], raw["stock"])
    except Exception as error:
        result = {"ok": False, "failures": [f"{type(error).__name__}: {error}"]}
    for failure in result["failures"]:
        say(f"FAILED {failure}")
    print(json.dumps({**result, "seconds": round(elapsed_seconds(), 1), "raw": raw}), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
