"""Far more requests than the cache holds: the policy against stock vLLM in the same memory.

    python -m checks.overload --model DIR

The demand is --demand times the tokens that stock's pool can hold: 4 by default, or 8 of a pool of
half the size with --elastic all, where 4 would fit without squeezing anybody.

Afterwards the plain-torch reference of the rule reads some of the policy's answers under the
windows that these requests had at each position; see checks/replay.py. The last line is one JSON
object. Exit status: 0 when every claim holds, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from checks.replay import Watcher, judge, reference_lags
from testbench.metrics_text import metric_values
from testbench.progress import say
from testbench.server import DEMO, Server, ServerError, exit_on_sigterm
from testbench.streaming import Answer, complete
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.config.names import ELASTICS
from vllm_headaware.plan import Plan
from vllm_headaware.plan.geometry import read_geometry
from vllm_headaware.profile.planning import plan_model

STOCK_BLOCK_TOKENS = 128
MAX_MODEL_LEN = 2560
PROMPT_TOKENS = (64, 1500)
NEW_TOKENS = (256, 1024)
POLICY_METRICS = {
    "floor_level": "budget_level_max",
    "tightened": "budget_changes_total",
    "squeezed_blocks": "blocks_squeezed_total",
    "preemptions_avoided": "preemptions_avoided_total",
}


def make_load(model: Path, total_tokens: int, seed: int) -> list[tuple[list[int], int]]:
    """Passages of held-out text, of mixed lengths, with how many tokens to generate after each."""
    from transformers import AutoTokenizer

    from vllm_headaware.tasks.text import held_out_text

    tokens = AutoTokenizer.from_pretrained(model).encode(held_out_text())
    rng, load = random.Random(seed), []
    while total_tokens > 0:
        length, new = rng.randint(*PROMPT_TOKENS), rng.randint(*NEW_TOKENS)
        start = rng.randrange(len(tokens) - length)
        load.append((tokens[start : start + length], new))
        total_tokens -= length + new
    return load


def metric(server: Server, name: str) -> float:
    """Sum of a metric's series."""
    return sum(metric_values(server.get("/metrics"), name))


def measure(
    name: str, load: list[tuple[list[int], int]], args: argparse.Namespace, blocks: int
) -> tuple[dict[str, Any], list[Answer], Watcher]:
    """Start one server with so many blocks, and send the load."""
    policy = name != "stock"
    serve_args = [
        *("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "64"),
        *("--max-num-batched-tokens", "512", "--num-gpu-blocks-override", str(blocks + 1)),
        *(
            ["--kv-policy", name, "--kv-elastic", args.elastic]
            if policy
            else ["--block-size", str(STOCK_BLOCK_TOKENS)]
        ),
        *args.serve_args,
    ]
    say(f"{name}: starting a server with {blocks} blocks")
    log = args.output / f"overload.{name}.log"
    with Server(args.model, port=0, log=log, serve_args=serve_args) as server:
        complete(server.url, load[0][0][:32], 8, "warm-up")
        say(f"{name}: sending {len(load)} requests")
        start = time.monotonic()
        watcher = Watcher(server)
        watching = watcher if policy else nullcontext()
        with watching, ThreadPoolExecutor(len(load)) as clients:
            try:
                sent = []
                for number, (prompt, new) in enumerate(load):
                    who = f"load{number:03d}x"
                    sent.append(clients.submit(complete, server.url, prompt, new, who))
                    time.sleep(args.spread / len(load))
                answers = [request.result() for request in sent]
            except BaseException:
                server.stop()  # so that no client waits for its answer
                raise
        seconds = time.monotonic() - start
        result = summarise(answers, seconds, args)
        result["preemptions"] = metric(server, "vllm:num_preemptions_total")
        if policy:
            result["max_level"] = watcher.max_level
            result["most_surplus_bytes"] = watcher.most_surplus
            for key, what in POLICY_METRICS.items():
                result[key] = metric(server, f"vllm_headaware_{what}")
            result["bytes_held_after"] = idle_bytes(server)
    done, good = result["completed"], result["good"]
    say(f"{name}: {done} completed, {good} good, in {seconds:.0f} s")
    return result, answers, watcher


def summarise(answers: list[Answer], seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """What a load of requests got."""
    done = [answer for answer in answers if answer.error is None]
    good = [a for a in done if a.ttft <= args.ttft and a.tpot <= args.tpot]
    ttfts = sorted(answer.ttft for answer in done)
    return {
        "sent": len(answers),
        "completed": len(done),
        "failed": len(answers) - len(done),
        "errors": sorted({answer.error for answer in answers if answer.error})[:3],
        "good": len(good),
        "seconds": seconds,
        "goodput_per_second": len(good) / seconds,
        "tokens_per_second": sum(len(answer.tokens) for answer in done) / seconds,
        "ttft_p95": ttfts[int(0.95 * (len(ttfts) - 1))] if ttfts else None,
        "tpot_median": statistics.median(a.tpot for a in done) if done else None,
    }


def idle_bytes(server: Server) -> float:
    """Bytes still held when the server has nothing to do."""
    deadline = time.monotonic() + 20
    while (held := metric(server, "vllm_headaware_kv_used_bytes")) and time.monotonic() < deadline:
        time.sleep(0.5)
    return held


def make_plan(model: Path, policy: str) -> Plan:
    """What the server will make of its flags."""
    geometry = read_geometry(model, "float32", MAX_MODEL_LEN)
    return plan_model(KVPolicyConfig(policy), geometry, model)[0]


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder")
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument("--elastic", default="prompt", choices=ELASTICS, help="--kv-elastic")
    parser.add_argument("--memory", type=int, metavar="MIB", help="of each pool")
    parser.add_argument("--demand", type=float, metavar="TIMES")
    parser.add_argument("--spread", type=float, default=5.0, metavar="SECONDS", help="of arrivals")
    parser.add_argument("--ttft", type=float, default=30.0, metavar="SECONDS", help="of goodput")
    parser.add_argument("--tpot", type=float, default=0.2, metavar="SECONDS", help="of goodput")
    parser.add_argument("--replays", type=int, default=8, metavar="REQUESTS", help="to check")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(".cache/overload"))
    parser.add_argument("--serve-args", nargs="*", default=["--enforce-eager"])
    args = parser.parse_args(argv)
    memory, demand = (180, 8.0) if args.elastic == "all" else (360, 4.0)
    args.memory, args.demand = args.memory or memory, args.demand or demand
    exit_on_sigterm()
    plan, memory = make_plan(args.model, args.kv_policy), args.memory * 2**20
    ours, stock = memory // plan.block_bytes, memory // plan.dense_bytes(STOCK_BLOCK_TOKENS)
    capacity = stock * STOCK_BLOCK_TOKENS
    load = make_load(args.model, int(args.demand * capacity), args.seed)
    tokens = sum(len(prompt) + new for prompt, new in load)
    say(f"{len(load)} requests of {tokens} tokens; stock's pool holds {capacity}")
    try:
        policy, answers, watcher = measure(args.kv_policy, load, args, ours)
        measured = {"policy": policy, "stock": measure("stock", load, args, stock)[0]}
    except ServerError as error:
        print(f"overload: error: {error}", file=sys.stderr)
        return 2
    lags = reference_lags(args.model, plan)
    policy |= judge(load, answers, watcher, args.replays, lags)
    result = conclude(measured, tokens / capacity, args)
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


def conclude(
    measured: dict[str, dict[str, Any]], demand: float, args: argparse.Namespace
) -> dict[str, Any]:
    """The last line."""
    ours, stock = measured["policy"], measured["stock"]
    ratio = ours["goodput_per_second"] / max(stock["goodput_per_second"], 1e-9)
    claims = {
        "none failed": ours["failed"] == 0,
        "none wrong": ours["wrong"] == 0 and ours["tokens_checked"] > 0,
        "at most a fifth of stock's preemptions": ours["preemptions"] <= stock["preemptions"] / 5,
        "goodput at least twice stock's": ratio >= 2,
        "nothing held when idle": ours["bytes_held_after"] == 0,
        "squeezed, if it may": ours["squeezed_blocks"] > 0 or args.elastic != "all",
    }
    return {
        "demand": round(demand, 2),
        "memory_mib": args.memory,
        "goodput_slo": {"ttft_seconds": args.ttft, "tpot_seconds": args.tpot},
        "requests_sent": ours["sent"],
        "completed": ours["completed"],
        "failed": ours["failed"],
        "preemptions": {name: run["preemptions"] for name, run in measured.items()},
        "goodput_ratio": ratio,
        "throughput_ratio": ours["tokens_per_second"] / stock["tokens_per_second"],
        "ttft_p95_ratio": ours["ttft_p95"] / stock["ttft_p95"],
        "tokens_checked": ours["tokens_checked"],
        "wrong": ours["wrong"],
        "measured": measured,
        "claims": claims,
        "ok": all(claims.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
