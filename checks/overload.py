"""Far more requests than the cache holds: the policy against stock vLLM in the same memory.

    python -m checks.overload --model DIR

The demand is --demand times the tokens that stock's pool can hold. Afterwards some of the policy's
completed requests are sent again, alone and pinned to the level they had. Their tokens must be the
same, up to a place where the plain-torch reference of the rule finds both as likely, undisturbed or
disturbed by what the kernels may be off. The last line is one JSON object. Exit status: 0 when
every claim holds, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbench.metrics_text import metric_values
from testbench.polling import Poller
from testbench.progress import say
from testbench.server import DEMO, Server, ServerError, exit_on_sigterm
from testbench.streaming import Answer, complete
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.plan import Plan
from vllm_headaware.plan.geometry import read_geometry
from vllm_headaware.plan.ladder import make_ladder
from vllm_headaware.profile.planning import plan_model

STOCK_BLOCK_TOKENS = 128
MAX_MODEL_LEN = 2560
PROMPT_TOKENS = (64, 1500)
NEW_TOKENS = (256, 1024)
TIE = 0.02
"""A token is as likely as another when its log probability lags by less. float32 sums depend on the
batch, and a key or value half way between two steps of int8 is then rounded the other way."""
DISTURBED = 8
"""How often the reference is asked again, disturbed, before it calls a token wrong."""
POLL_SECONDS = 0.25


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
    checked, parted = 0, []
    for level, number in sample:
        prompt, new = load[number]
        again = complete(server.url, prompt, new, f"replay{number:03d}x", {"kv_level": level})
        if again.error:
            raise ServerError(f"a replay failed: {again.error}")
        first, second = answers[number].tokens, again.tokens
        same = same_tokens(first, second)
        checked += min(same + 1, new)
        if same < new:
            parted.append(Parted(level, [*prompt, *first[:same]], (first[same], second[same])))
        say(f"replay of request {number} at level {level}: {same} of {new} tokens are the same")
    return {
        "requests_replayed": len(sample),
        "levels_replayed": sorted({level for level, _ in sample}),
        "tokens_checked": checked,
        "parted": parted,
    }


@dataclass(frozen=True)
class Parted:
    """Where a request and its replay went different ways.

    Attributes:
        level: of both.
        prefix: token ids that both had, the prompt first.
        tokens: what each of them wrote next.
    """

    level: int
    prefix: list[int]
    tokens: tuple[int, int]


def same_tokens(first: list[int], second: list[int]) -> int:
    """How many tokens two answers share from their beginning on."""
    pairs = enumerate(zip(first, second, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(first))


def judge(parted: list[Parted], lags: Callable[[Parted, bool], Sequence[float]]) -> dict[str, Any]:
    """Which partings were ties in the eyes of the reference.

    Args:
        parted: of all replays.
        lags: of both tokens of a parting; the reference is disturbed where the second argument
            says so.
    """
    worst = []
    for number, parting in enumerate(parted):
        best = list(lags(parting, False))
        for _ in range(DISTURBED):
            if max(best) < TIE:
                break
            best = [min(pair) for pair in zip(best, lags(parting, True), strict=True)]
        worst.append(max(best))
        say(f"parting {number + 1} of {len(parted)}: the reference's lag is {worst[-1]:.4f}")
    return {
        "ties": sum(lag < TIE for lag in worst),
        "wrong": sum(lag >= TIE for lag in worst),
        "largest_lag_where_parted": max(worst, default=0.0),
    }


def reference_lags(model: Path, plan: Plan) -> Callable[[Parted, bool], Sequence[float]]:
    """What judge() asks, answered by the reference of a plan at the level of each parting."""
    import torch

    from testbench.hf_reference import KERNEL_NOISE, HFReference, rules_of

    torch.manual_seed(0)
    ladder = make_ladder(plan.classes, plan.windows, KVPolicyConfig("headaware").floor)
    references = [HFReference(model, noise=noise) for noise in (0.0, KERNEL_NOISE)]

    def lags(parting: Parted, disturbed: bool) -> Sequence[float]:
        reference = references[disturbed]
        reference.rules = rules_of(plan, ladder[parting.level])
        last = reference.logprobs(parting.prefix)[-1]
        return [float(last.max() - last[token]) for token in parting.tokens]

    return lags


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
    plan, memory = make_plan(args.model, args.kv_policy), args.memory * 2**20
    ours, stock = memory // plan.block_bytes, memory // plan.dense_bytes(STOCK_BLOCK_TOKENS)
    capacity = stock * STOCK_BLOCK_TOKENS
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
    parted = measured["policy"].pop("parted")
    measured["policy"] |= judge(parted, reference_lags(args.model, plan))
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
        "ties": ours["ties"],
        "wrong": ours["wrong"],
        "measured": measured,
        "claims": claims,
        "ok": all(claims.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
