"""The policy against stock vLLM, engine against engine: decode, TTFT, KV bytes, concurrency.

    python -m benchmarks.bench_serving --json            8k context, batch 8
    python -m benchmarks.bench_serving --json --quick    4k context, batch 4

Each side is one process with one compiled engine in float32 and the same KV memory. The last line
on stdout is one JSON object; ratios above 1 are in the policy's favour:
  decode_ratio           decode tokens/s over stock
  ttft_ratio             stock's time to first token, one request alone, over the policy's
  kv_saving_vs_16bit     bytes of a full cache in 16 bit over bytes of the blocks really held
  concurrency_ratio      requests whose blocks fit the same memory, over stock
  short_ratio            decode tokens/s of one request of 512 tokens, over stock
Timings are only good on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from testbench.one_side import run_side

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
KV_GIB = "4"  # stock must hold 8 requests of 8k in float32


def measure(model: str, policy: str | None, options: list[str], size: list[str]) -> dict[str, Any]:
    """Run checks/probe.py on an engine of its own; see run_side()."""
    asked = ["--model", model, "--json", "--task", "short,ttft,decode", *size]
    if policy:
        asked += ["--kv-policy", policy, *(f"--policy-option={option}" for option in options)]
    return run_side("checks.probe", asked, {"VLLM_CPU_KVCACHE_SPACE": KV_GIB})


def compare(ours: dict[str, Any], stock: dict[str, Any]) -> dict[str, Any]:
    """The ratios, from what both engines report."""
    context = ours["decode"]["context_tokens"][0]
    per_request = {
        name: side["decode"]["bytes"] / side["decode"]["batch"]
        for name, side in (("ours", ours), ("stock", stock))
    }
    # Stock holds float32; a 16-bit cache would be half of it.
    memory = stock["decode"]["pool_blocks"] * stock["decode"]["block_bytes"]
    fit = {name: memory // size for name, size in per_request.items()}
    return {
        "decode_ratio": ours["decode"]["tokens_per_second"] / stock["decode"]["tokens_per_second"],
        "ttft_ratio": stock["ttft"]["seconds"] / ours["ttft"]["seconds"],
        "kv_saving_vs_16bit": per_request["stock"] / 2 / per_request["ours"],
        "concurrency_ratio": fit["ours"] / fit["stock"],
        "short_ratio": ours["short"]["tokens_per_second"] / stock["short"]["tokens_per_second"],
        "context": context,
        "batch": ours["decode"]["batch"],
        "decode_tokens_per_second": ours["decode"]["tokens_per_second"],
        "decode_tokens_per_second_stock": stock["decode"]["tokens_per_second"],
        "ttft_seconds": ours["ttft"]["seconds"],
        "ttft_seconds_stock": stock["ttft"]["seconds"],
        "kv_bytes_per_request": per_request["ours"],
        "kv_bytes_per_request_stock": per_request["stock"],
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(DEMO), help="model folder")
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument(
        "--policy-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further field of the policy, such as retrieval_dtype=int4",
    )
    parser.add_argument("--quick", action="store_true", help="4k context, batch 4")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and only that")
    args = parser.parse_args()
    context, batch = (4096, 4) if args.quick else (8192, 8)
    size = ["--context", str(context), "--batch", str(batch)]
    ours = measure(args.model, args.kv_policy, args.policy_option, size)
    stock = measure(args.model, None, [], size)
    result = compare(ours, stock)
    if not args.json:
        for name, value in result.items():
            print(f"{name:32} {value:,.2f}")
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
