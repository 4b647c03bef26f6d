"""Far more requests than the cache holds: the policy against stock vLLM in the same memory.

    python tools/overload.py --model DIR

The demand is --demand times the tokens that stock's pool can hold. Afterwards some of the policy's
completed requests are sent again, alone and pinned to the level they had: their tokens must be the
same. The last line is one JSON object. Exit status: 0 when every claim holds, else 1.
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

from metrics_text import metric_values
from polling import Poller
from progress import say
from server import Server, ServerError, exit_on_sigterm
from streaming import Answer, complete

DEMO = Path(__file__).resolve().parent.parent / ".cache" / "models" / "SmolLM2-135M-Instruct"
STOCK_BLOCK_TOKENS = 128
MAX_MODEL_LEN = 2560
PROMPT_TOKENS = (64, 1500)
NEW_TOKENS = (256, 1024)
TIE = 0.02
"""Two tokens are a tie when their log probabilities differ by less. float32 sums depend on the
batch, and a key or value half way between two steps of int8 is then rounded the other way."""
POLL_SECONDS = 0.25


def make_load(model: Path, total_tokens: int, seed: int) -> list[tuple[list[int], int]]:
    """Passages of held-out text, of mixed lengths, with how many tokens to generate after each."""
    from transformers import AutoTokenizer

    from vllm_headaware.eval.text import held_out_text

    tokens = AutoTokenizer.from_pretrained(model).encode(held_out_text())
    rng, load = random.Random(seed), []
    while total_tokens > 0:
        length, new = rng.randint(*PROMPT_TOKENS), rng.randint(*NEW_TOKENS)
        start = rng.randrange(len(tokens) - length)
        load.append((tokens[start : start + length], new))
        total_tokens -= length + new
    return load


class Watcher(Poller):
    """Polls a server under a policy while it works: the level of every request."""

    def __init__(self, server: Server) -> None:
        super().__init__(POLL_SECONDS)
        self.server = server
        self.levels: dict[str, int] = {}
        self.max_level = 0

    def look(self) -> None:
        """Remember the levels of the requests that run now."""
        state = json.loads(self.server.get("/headaware/heads.json"))
        self.max_level = max(self.max_level, state["level"])
        for request in state["requests"]:
            self.levels[request["request_id"]] = request["level"]

    def level_of(self, request_id: str) -> int | None:
        """Level of a request by its client's name; None where it was never seen running."""
        for name, level in self.levels.items():
            if f"-{request_id}-" in name:
                return level
        return None


def metric(server: Server, name: str) -> float:
    """Sum of a metric's series."""
    return sum(metric_values(server.get("/metrics"), name))


def measure(
    name: str, load: list[tuple[list[int], int]], args: argparse.Namespace, blocks: int
) -> dict[str, Any]:
    """Start one server with so many blocks, send the load, and replay some of it alone."""
    policy = name != "stock"
    serve_args = [
        *("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "64"),
        *("--max-num-batched-tokens", "512", "--num-gpu-blocks-override", str(blocks + 1)),
        *(["--kv-policy", name] if policy else ["--block-size", str(STOCK_BLOCK_TOKENS)]),
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
            result["floor_level"] = metric(server, "vllm_headaware_budget_level_max")
            result["tightened"] = metric(server, "vllm_headaware_budget_changes_total")
            result |= replay(server, load, answers, watcher, args)
            result["bytes_held_after"] = idle_bytes(server)
    done, good = result["completed"], result["good"]
    say(f"{name}: {done} completed, {good} good, in {seconds:.0f} s")
    return result


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


def replay(
    server: Server,
    load: list[tuple[list[int], int]],
    answers: list[Answer],
    watcher: Watcher,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Send requests again, alone, at the level they had; those of the highest levels first."""
    known = [
        (level, number)
        for number, answer in enumerate(answers)
        if answer.error is None and (level := watcher.level_of(answer.request_id)) is not None
    ]
    by_level = sorted(known, key=lambda pair: (-pair[0], pair[1]))
    sample = by_level[:: max(len(by_level) // args.replays, 1)][: args.replays]
    wrong = ties = checked = 0
    margins = [0.0]
    for level, number in sample:
        prompt, new = load[number]
        again = complete(server.url, prompt, new, f"replay{number:03d}x", {"kv_level": level})
        if again.error:
            raise ServerError(f"a replay failed: {again.error}")
        verdict = compare(answers[number], again)
        checked += verdict[1]
        wrong += verdict[0] == "wrong"
        ties += verdict[0] == "tie"
        margins.append(verdict[2])
        say(f"replay of request {number} at level {level}: {verdict}")
    return {
        "requests_replayed": len(sample),
        "levels_replayed": sorted({level for level, _ in sample}),
        "tokens_checked": checked,
        "wrong": wrong,
        "ties": ties,
        "largest_margin_where_parted": max(margins),
    }


def compare(first: Answer, again: Answer) -> tuple[str, int, float]:
    """ "same", "tie" or "wrong"; how many tokens were compared; and by how much log probability the
    better token led where they parted.

    Greedy tokens may part where two are equally likely; after that the texts are different ones.
    """
    for at, (a, b) in enumerate(zip(first.tokens, again.tokens, strict=True)):
        if a != b:
            lead = max(first.margins[at], again.margins[at])
            return ("tie" if lead < TIE else "wrong"), at + 1, lead
    return "same", len(first.tokens), 0.0


def idle_bytes(server: Server) -> float:
    """Bytes still held when the server has nothing to do."""
    deadline = time.monotonic() + 20
    while (held := metric(server, "vllm_headaware_kv_used_bytes")) and time.monotonic() < deadline:
        time.sleep(0.5)
    return held


def pool_blocks(model: Path, policy: str, memory: int) -> tuple[int, int, int]:
    """Blocks of the policy's and of stock's pool in the same memory, and tokens of stock's."""
    from vllm_headaware.config import KVPolicyConfig
    from vllm_headaware.geometry import read_geometry
    from vllm_headaware.planning import plan_model

    geometry = read_geometry(model, "float32", MAX_MODEL_LEN)
    plan, _ = plan_model(KVPolicyConfig(policy), geometry, model)
    stock = memory // plan.dense_bytes(STOCK_BLOCK_TOKENS)
    return memory // plan.block_bytes, stock, stock * STOCK_BLOCK_TOKENS


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder")
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument("--memory", type=int, default=360, metavar="MIB", help="of each pool")
    parser.add_argument("--demand", type=float, default=4.0, metavar="TIMES")
    parser.add_argument("--spread", type=float, default=5.0, metavar="SECONDS", help="of arrivals")
    parser.add_argument("--ttft", type=float, default=30.0, metavar="SECONDS", help="of goodput")
    parser.add_argument("--tpot", type=float, default=0.2, metavar="SECONDS", help="of goodput")
    parser.add_argument("--replays", type=int, default=8, metavar="REQUESTS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(".cache/overload"))
    parser.add_argument("--serve-args", nargs="*", default=["--enforce-eager"])
    args = parser.parse_args(argv)
    exit_on_sigterm()
    ours, stock, capacity = pool_blocks(args.model, args.kv_policy, args.memory * 2**20)
    load = make_load(args.model, int(args.demand * capacity), args.seed)
    tokens = sum(len(prompt) + new for prompt, new in load)
    say(f"{len(load)} requests of {tokens} tokens; stock's pool holds {capacity}")
    try:
        measured = {
            "policy": measure(args.kv_policy, load, args, ours),
            "stock": measure("stock", load, args, stock),
        }
    except ServerError as error:
        print(f"overload: error: {error}", file=sys.stderr)
        return 2
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
        "no preemption": ours["preemptions"] == 0,
        "goodput at least twice stock's": ratio >= 2,
        "nothing held when idle": ours["bytes_held_after"] == 0,
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
