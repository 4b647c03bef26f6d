"""`make router`: vllm-router in front of two servers of the demo model, until Ctrl-C.

With --check it sends a few requests instead, looks whether both servers answered some of them and
what each now holds, and ends; the last line on stdout is one JSON object whose `ok` is also the
exit status:
  requests    sent through the router; all were answered
  answered    by server: requests that it finished, from its own /metrics
  kv_bytes    by server: KV bytes that its finished requests had held, from vllm_headaware_*
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from testbench.metrics_text import metric_values
from testbench.progress import say
from testbench.server import SERVED_NAME, Server, ServerError, exit_on_sigterm, free_port

ROUTER = Path(".cache/router/bin/vllm-router")
SERVE_ARGS = ("--kv-policy", "headaware", "--max-model-len", "2048", "--enforce-eager")
REQUESTS = 6


class Router(Server):
    """A vllm-router process on this machine; use as a context manager.

    Args:
        program: the vllm-router command.
        workers: URLs of the servers it shares requests out among; they must be healthy.
        port: port to listen on; 0 picks a free one.
        log: file that gets its output.
        policy: whom it gives a request, as vllm-router names it.

    Raises:
        ServerError: on entering, when it is not healthy in time; names the log.
    """

    def __init__(
        self, program: Path, workers: list[str], *, port: int, log: Path, policy: str
    ) -> None:
        super().__init__("", port=port, log=log)
        metrics_port = free_port()
        self.command = [
            str(program),
            *("--host", "127.0.0.1", "--port", str(self.port), "--policy", policy),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
            *("--worker-urls", *workers),
        ]


def ask(url: str, prompt: str) -> str:
    """A completion of a few tokens."""
    body = {"model": SERVED_NAME, "prompt": prompt, "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        url + "/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["choices"][0]["text"]


def check(router: Server, servers: list[Server]) -> dict[str, Any]:
    """Send requests through the router; see the module's text for what it returns."""
    say(f"sending {REQUESTS} requests through the router")
    answers = [ask(router.url, f"Count from {n}: {n}, {n + 1},") for n in range(REQUESTS)]
    metrics = {server.url: server.get("/metrics") for server in servers}
    answered, kv_bytes = (
        {url: sum(metric_values(text, name)) for url, text in metrics.items()}
        for name in ("vllm:request_success_total", "vllm_headaware_request_kv_bytes_sum")
    )
    shared = all(answered.values()) and sum(answered.values()) == REQUESTS
    return {
        "ok": shared and all(answers) and all(kv_bytes.values()),
        "requests": REQUESTS,
        "answered": {url: int(count) for url, count in answered.items()},
        "kv_bytes": kv_bytes,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--router", type=Path, default=ROUTER, help="the vllm-router command")
    parser.add_argument("--port", type=int, default=8000, help="of the router; 0 picks a free one")
    parser.add_argument("--policy", default="round_robin", help="as vllm-router names it")
    parser.add_argument("--folder", type=Path, default=Path(".cache/router-logs"))
    parser.add_argument("--check", action="store_true", help="send requests, report, end")
    args = parser.parse_args()
    exit_on_sigterm()
    servers = [
        Server(args.model, port=0, log=args.folder / f"server-{name}.log", serve_args=SERVE_ARGS)
        for name in "ab"
    ]
    try:
        with (
            servers[0],
            servers[1],
            Router(
                args.router,
                [server.url for server in servers],
                port=args.port,
                log=args.folder / "router.log",
                policy=args.policy,
            ) as router,
        ):
            if args.check:
                result = check(router, servers)
                print(json.dumps(result), flush=True)
                return 0 if result["ok"] else 1
            print(f"Router at {router.url}, in front of", *(s.url for s in servers), flush=True)
            router.wait()
    except KeyboardInterrupt:
        say("stopped")
    except (OSError, ServerError) as error:
        print(f"router: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
