"""What `make serve` runs last: the real server, one request of our own, and what to try next."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import urllib.request
from pathlib import Path

from testbench.progress import say
from testbench.server import SERVED_NAME, Server, ServerError, exit_on_sigterm

QUESTION = "What is the capital of France?"


def ask(server: Server, question: str) -> str:
    """Answer to one chat message.

    Raises:
        ServerError: the answer is empty.
    """
    request = urllib.request.Request(
        server.url + "/v1/chat/completions",
        data=json.dumps(chat_body(question)).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        answer = json.load(response)["choices"][0]["message"]["content"]
    if not answer.strip():
        raise ServerError(f"empty answer to {question!r}")
    return answer


def chat_body(question: str) -> dict[str, object]:
    """Body of a chat request."""
    return {
        "model": SERVED_NAME,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 40,
        "temperature": 0,
    }


def held_by_class(metrics: str) -> list[str]:
    """The lines of /metrics that say what each head class holds."""
    return [
        line for line in metrics.splitlines() if line.startswith("vllm_headaware_kv_class_bytes{")
    ]


def banner(server: Server, answer: str) -> str:
    """What a newcomer sees."""
    body = shlex.quote(json.dumps(chat_body(QUESTION)))
    return f"""
vLLM serves {SERVED_NAME} at {server.url} (OpenAI API under {server.url}/v1)

  asked:    {QUESTION}
  answered: {answer.strip()}

Ask it yourself:
  curl -s {server.url}/v1/chat/completions -H 'Content-Type: application/json' -d {body}
Expect JSON whose choices[0].message.content is the answer above.

What each head class holds, in bytes (0 while idle):
  curl -s {server.url}/metrics | grep vllm_headaware_kv_class_bytes

Server log: {server.log}
"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument("--log", type=Path, default=Path(".cache/serve.log"))
    parser.add_argument("--exit-after-check", action="store_true", help="stop after one answer")
    args = parser.parse_args()
    exit_on_sigterm()

    policy = [] if args.kv_policy == "none" else ["--kv-policy", args.kv_policy]
    server = Server(args.model, port=args.port, log=args.log, serve_args=policy)
    say("starting " + shlex.join(["vllm", *server.command[1:]]))
    try:
        with server:
            print(banner(server, ask(server, QUESTION)), flush=True)
            if policy and not held_by_class(server.get("/metrics")):
                raise ServerError("/metrics has no vllm_headaware_kv_class_bytes")
            if not args.exit_after_check:
                print("Ctrl-C stops it.", flush=True)
                server.wait()
    except KeyboardInterrupt:
        say("stopped")
    except (OSError, ServerError) as error:
        print(f"serve: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
