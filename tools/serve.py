"""`make serve`: the demo model under --kv-policy headaware, with one answer to show that it works.

    python tools/serve.py MODEL [--port 8000] [--exit-after-check]
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path

from server import running_server

PROMPT = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 32,
    "temperature": 0,
}


def main() -> int:
    """Serve until Ctrl-C, or until the check is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--exit-after-check", action="store_true")
    args = parser.parse_args()
    try:
        with running_server(args.model, "--kv-policy", "headaware", port=args.port) as (url, server):
            request = urllib.request.Request(
                f"{url}/v1/chat/completions",
                data=json.dumps(PROMPT).encode(),
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                answer = json.load(response)["choices"][0]["message"]["content"]
            print(welcome(url, answer), flush=True)
            return 0 if args.exit_after_check else server.wait()
    except KeyboardInterrupt:
        return 0


def welcome(url: str, answer: str) -> str:
    """What a newcomer sees when the server is up."""
    return f"""
Serving SmolLM2-135M-Instruct with --kv-policy headaware at {url}
  asked:    {PROMPT["messages"][0]["content"]}
  answered: {" ".join(answer.split())}

Try it (an answer should arrive within seconds):
  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "smollm2", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

What each head class holds right now:
  curl -s {url}/metrics | grep vllm_headaware_kv_class

Stop with Ctrl-C.
"""


if __name__ == "__main__":
    sys.exit(main())
