"""Random load for a long time: requests of all sizes, aborts, budgets of their own, pressure.

    python -m checks.soak --minutes 30 --elastic all

Clients come and go, some hang up in the middle, some ask for budgets, some for nonsense. At the end
the server must hold no block, remember no request, have its budgets where they began, and use about
as much memory as after the first tenth. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from checks.overload import MAX_MODEL_LEN, idle_bytes, make_plan, metric
from testbench.progress import say
from testbench.server import DEMO, SERVED_NAME, Server, ServerError, exit_on_sigterm
from testbench.streaming import complete
from vllm_headaware.config.names import ELASTICS

GROWTH = 0.05
"""Share by which the server's memory may grow after the first tenth."""
BATCH_TOKENS = 128
"""Most tokens of a step. vLLM's linear layers keep what oneDNN prepared for the last 128 counts of
tokens in a step: with no more counts than that they keep all, and after the warm-up nothing new."""
OPTIONS: list[dict[str, Any] | None] = [
    None,
    None,
    None,
    {"kv_budget": 700},
    {"kv_level": 1},
    {"kv_policy": "full"},
]
NONSENSE: list[dict[str, Any]] = [
    {"kv_budget": -1},
    {"kv_budgt": 700},
    {"kv_policy": "half"},
    {"kv_level": 99},
]


class Client(threading.Thread):
    """Sends one request after the other until told to stop."""

    def __init__(self, url: str, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.rng, self.stop = url, random.Random(seed), stop
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.outcomes[self.one()] += 1
            except urllib.error.HTTPError as error:
                self.outcomes[f"HTTP {error.code}"] += 1
            except OSError as error:
                self.outcomes[type(error).__name__] += 1

    def one(self) -> str:
        """One request of some kind; what became of it."""
        rng = self.rng
        nonsense = rng.random() < 0.1
        xargs = rng.choice(NONSENSE if nonsense else OPTIONS)
        length = int(rng.triangular(1, MAX_MODEL_LEN // 2, 200))
        new = int(rng.triangular(1, 400, 60))
        body = {
            "model": SERVED_NAME,
            # Some prompts begin alike, so that the prefix cache has something to do.
            "prompt": [rng.choice((1000, 2000))] * (length // 2)
            + [rng.randrange(3000, 40000) for _ in range(length - length // 2)],
            "max_tokens": new,
            "ignore_eos": True,
            "stream": True,
            "n": rng.choice((1, 1, 1, 2)),
            **({"vllm_xargs": xargs} if xargs else {}),
        }
        request = urllib.request.Request(
            self.url + "/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        hang_up = rng.random() < 0.25
        try:
            with urllib.request.urlopen(request, timeout=300) as stream:
                for number, line in enumerate(stream):
                    if line.startswith(b"data: {") and "error" in json.loads(line[6:]):
                        return "error in stream"
                    if hang_up and number > rng.randrange(1, 40):
                        return "hung up"
        except urllib.error.HTTPError as error:
            if nonsense and error.code == 400:
                return "refused"
            raise
        return "nonsense was served" if nonsense else "completed"


def fill_prepared(server: Server) -> None:
    """Steps of every count of tokens."""
    rng = random.Random(0)
    for count in range(1, BATCH_TOKENS + 1):
        prompt = [rng.randrange(3000, 40000) for _ in range(count)]
        answer = complete(server.url, prompt, 1, f"prepare{count}")
        if answer.error:
            raise ServerError(f"warming up failed: {answer.error}")


def resident_bytes(server: Server) -> int:
    """Memory of the server and of the processes it started."""
    import psutil

    assert server._process is not None
    root = psutil.Process(server._process.pid)
    return sum(p.memory_info().rss for p in (root, *root.children(recursive=True)))


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--elastic", default="prompt", choices=ELASTICS, help="--kv-elastic")
    parser.add_argument("--memory", type=int, default=96, metavar="MIB", help="of the pool")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(".cache/soak"))
    args = parser.parse_args(argv)
    exit_on_sigterm()
    blocks = args.memory * 2**20 // make_plan(args.model, "headaware").block_bytes
    serve_args = [
        *("--kv-policy", "headaware", "--kv-floor", "0.25", "--enforce-eager"),
        *("--kv-elastic", args.elastic, "--max-model-len", str(MAX_MODEL_LEN)),
        *("--max-num-batched-tokens", str(BATCH_TOKENS)),
        *("--num-gpu-blocks-override", str(blocks + 1)),
    ]
    log = args.output / "soak.log"
    with Server(args.model, port=0, log=log, serve_args=serve_args) as server:
        fill_prepared(server)
        stop = threading.Event()
        clients = [Client(server.url, args.seed + i, stop) for i in range(args.clients)]
        for client in clients:
            client.start()
        say(f"{args.clients} clients on {blocks} blocks for {args.minutes:g} minutes")
        time.sleep(6 * args.minutes)
        early = resident_bytes(server)
        for tenth in range(1, 10):
            say(f"{tenth} of 10 done; memory has grown by {resident_bytes(server) / early - 1:.1%}")
            time.sleep(6 * args.minutes)
        stop.set()
        for client in clients:
            client.join(300)
        outcomes = sum((client.outcomes for client in clients), Counter[str]())
        idle_bytes(server)
        complete(server.url, [1000], 2, "calm")  # budgets are looked at when a step begins
        held, late = idle_bytes(server), resident_bytes(server)
        result = {
            "minutes": args.minutes,
            "outcomes": dict(outcomes),
            "preemptions": metric(server, "vllm:num_preemptions_total"),
            "tightened": metric(server, "vllm_headaware_budget_changes_total"),
            "squeezed_blocks": metric(server, "vllm_headaware_blocks_squeezed_total"),
            "bytes_held_after": held,
            "requests_after": metric(server, "vllm_headaware_kv_requests"),
            "level_after": metric(server, "vllm_headaware_budget_level"),
            "memory_growth": late / early - 1,
        }
    allowed = {"completed", "hung up", "refused", "HTTP 400"}
    result["ok"] = (
        not set(outcomes) - allowed
        and outcomes["completed"] > 0
        and not held
        and not result["requests_after"]
        and result["tightened"]
        and (result["squeezed_blocks"] or args.elastic != "all")
        and not result["level_after"]
        and late / early - 1 < GROWTH
    )
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
