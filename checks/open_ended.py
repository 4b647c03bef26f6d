"""64 chats that set no max_tokens, in 400 MiB: the policy against stock vLLM.

    python -m checks.open_ended --model DIR

First short answers, as chats get them: how many run at once. Then every answer runs to the model's
limit, which nobody could know beforehand: what fails, is put back, and is good; some answers are
read again by the reference, as in checks.overload. The last line is one JSON object. Exit status: 0
when every claim holds, else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from checks.overload import STOCK_BLOCK_TOKENS, idle_bytes, make_load, metric, summarise
from checks.replay import POLL_SECONDS, Watcher, judge, reference_lags
from testbench.polling import Poller
from testbench.progress import say
from testbench.server import DEMO, SERVED_NAME, Server, ServerError, exit_on_sigterm
from testbench.streaming import complete
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.plan.geometry import read_geometry
from vllm_headaware.profile.planning import plan_model

CHAT_MODEL_LEN = 8192
QUESTIONS = (
    "Explain why the sky is blue.",
    "Describe what a lemon tastes like.",
    "How do I boil an egg?",
    "What is a prime number?",
)


class Running(Poller):
    """The most requests that a server ran at once."""

    def __init__(self, server: Server) -> None:
        super().__init__(POLL_SECONDS)
        self.server, self.peak = server, 0.0

    def look(self) -> None:
        """Ask the server's metrics."""
        self.peak = max(self.peak, metric(self.server, "vllm:num_requests_running"))


def chat(url: str, question: str) -> str | None:
    """A chat without max_tokens, of part of a sentence; why it failed, else None.

    A small model that decodes greedily often repeats itself for ever, so a comma ends it too.
    """
    message = {"role": "user", "content": question}
    body = {"model": SERVED_NAME, "messages": [message], "stop": [".", ",", "\n"]}
    request = urllib.request.Request(
        url + "/v1/chat/completions",
        json.dumps({**body, "temperature": 0}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=1800) as answer:
            json.load(answer)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


def measure(name: str, long: bool, args: argparse.Namespace) -> dict[str, Any]:
    """One server, one of both loads."""
    longest = args.limit if long else CHAT_MODEL_LEN
    plan = plan_model(
        KVPolicyConfig(args.kv_policy), read_geometry(args.model, "float32", longest), args.model
    )[0]
    policy = name != "stock"
    bytes_each = plan.block_bytes if policy else plan.dense_bytes(STOCK_BLOCK_TOKENS)
    blocks = args.memory * 2**20 // bytes_each
    serve_args = [
        *("--max-model-len", str(longest), "--max-num-seqs", "64"),
        *("--max-num-batched-tokens", "512", "--num-gpu-blocks-override", str(blocks + 1)),
        *(["--kv-policy", name] if policy else ["--block-size", str(STOCK_BLOCK_TOKENS)]),
        *args.serve_args,
    ]
    what = "to the limit" if long else "short"
    say(f"{name}, {what}: starting a server with {blocks} blocks")
    log = args.output / f"open_ended.{name}.{what.replace(' ', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    prompts = [prompt for prompt, _ in make_load(args.model, 10**6, args.seed)][: args.requests]
    load = [(prompt[:64], longest - 64) for prompt in prompts]
    with Server(args.model, port=0, log=log, serve_args=serve_args) as server, ExitStack() as stack:
        complete(server.url, load[0][0][:32], 8, "warm-up")
        running = stack.enter_context(Running(server))
        watcher = Watcher(server)
        if policy:
            stack.enter_context(watcher)
        begin = time.monotonic()
        with ThreadPoolExecutor(args.requests) as clients:
            if long:
                who = [f"load{number:03d}x" for number in range(len(load))]
                answers = list(
                    clients.map(
                        lambda sent: complete(server.url, sent[0][0], sent[0][1], sent[1]),
                        zip(load, who, strict=True),
                    )
                )
                result = summarise(answers, time.monotonic() - begin, args)
            else:
                asked = [QUESTIONS[i % len(QUESTIONS)] for i in range(args.requests)]
                errors = list(clients.map(lambda question: chat(server.url, question), asked))
                failed = [error for error in errors if error]
                result = {"completed": len(errors) - len(failed), "failed": len(failed)}
                result["errors"] = sorted(set(failed))[:3]
        result["seconds"] = time.monotonic() - begin
        result["peak_running"] = running.peak
        result["preemptions"] = metric(server, "vllm:num_preemptions_total")
        if policy:
            result["bytes_held_after"] = idle_bytes(server)
    if policy and long:
        result |= judge(load, answers, watcher, args.replays, reference_lags(args.model, plan))
    say(f"{name}, {what}: {json.dumps({k: v for k, v in result.items() if k != 'errors'})}")
    return result


def conclude(runs: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The last line."""
    short, long = runs["short"], runs["to_the_limit"]
    ratio = long["policy"]["goodput_per_second"] / max(long["stock"]["goodput_per_second"], 1e-9)
    claims = {
        "as many short chats at once as stock": short["policy"]["peak_running"]
        >= short["stock"]["peak_running"],
        "none failed": all(load["policy"]["failed"] == 0 for load in runs.values()),
        "none wrong": long["policy"]["wrong"] == 0 and long["policy"]["tokens_checked"] > 0,
        "goodput at least twice stock's": ratio >= 2,
        "at most a fifth of stock's preemptions": long["policy"]["preemptions"]
        <= long["stock"]["preemptions"] / 5,
        "nothing held when idle": all(
            load["policy"]["bytes_held_after"] == 0 for load in runs.values()
        ),
    }

    def both(load: dict[str, dict[str, Any]], what: str) -> dict[str, Any]:
        return {side: run[what] for side, run in load.items()}

    return {
        "peak_running": {name: both(load, "peak_running") for name, load in runs.items()},
        "completed": {name: both(load, "completed") for name, load in runs.items()},
        "failed": {name: both(load, "failed") for name, load in runs.items()},
        "preemptions": {name: both(load, "preemptions") for name, load in runs.items()},
        "goodput_ratio": ratio,
        "tokens_per_second": both(long, "tokens_per_second"),
        "wrong": long["policy"]["wrong"],
        "tokens_checked": long["policy"]["tokens_checked"],
        "claims": claims,
        "ok": all(claims.values()),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder")
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument("--memory", type=int, default=400, metavar="MIB", help="of each pool")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument(
        "--limit", type=int, default=1024, metavar="TOKENS", help="where endless answers end"
    )
    parser.add_argument("--ttft", type=float, default=60.0, metavar="SECONDS", help="of goodput")
    parser.add_argument("--tpot", type=float, default=0.5, metavar="SECONDS", help="of goodput")
    parser.add_argument("--replays", type=int, default=6, metavar="REQUESTS", help="to check")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(".cache/open_ended"))
    parser.add_argument("--serve-args", nargs="*", default=["--enforce-eager"])
    args = parser.parse_args(argv)
    exit_on_sigterm()
    try:
        runs = {
            what: {
                "policy": measure(args.kv_policy, long, args),
                "stock": measure("stock", long, args),
            }
            for what, long in (("short", False), ("to_the_limit", True))
        }
    except ServerError as error:
        print(f"open-ended: error: {error}", file=sys.stderr)
        return 2
    result = conclude(runs)
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
