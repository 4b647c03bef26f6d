"""`make smoke`: the real server answers, and the claims hold against stock vLLM in the same run.

    python tools/smoke.py MODEL

Progress goes to stderr; the last line of stdout is one JSON object. Exit status 0 when `ok`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import OpenAI
from server import free_port, running_server

MAX_KV_SHARE, MAX_NEEDLE_LOSS, MIN_DECODE_RATIO = 0.40, 0.05, 1.6


def main(model: Path) -> int:
    """Check the server, then measure headaware and stock one after the other."""
    started = time.monotonic()
    report: dict[str, Any] = {"http": check_server(model)}
    head = probe(model, "--kv-policy", "headaware")
    stock = probe(model)
    report |= {
        "kv_bytes_8k": head["kv_bytes_8k"],
        "kv_bytes_8k_stock": stock["kv_bytes_8k"],
        "kv_share_8k": head["kv_bytes_8k"] / stock["kv_bytes_8k"],
        "needle_full": stock["needle"],
        "needle_headaware": head["needle"],
        "decode_ratio": head["decode_tokens_per_second"] / stock["decode_tokens_per_second"],
        "prefill_ratio": stock["decode_prefill_seconds"] / head["decode_prefill_seconds"],
        "headaware": head,
        "stock": stock,
        "seconds": round(time.monotonic() - started),
    }
    ok = (
        all(report["http"].values())
        and report["kv_share_8k"] <= MAX_KV_SHARE
        and report["needle_headaware"] >= report["needle_full"] - MAX_NEEDLE_LOSS
        and report["decode_ratio"] >= MIN_DECODE_RATIO
    )
    print(json.dumps({"ok": ok, **report}), flush=True)
    return 0 if ok else 1


def probe(model: Path, *flags: str) -> dict[str, Any]:
    """Run tools/probe.py in a process of its own."""
    script = Path(__file__).with_name("probe.py")
    done = subprocess.run(
        [sys.executable, str(script), str(model), *flags], check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


def check_server(model: Path) -> dict[str, bool]:
    """Every way a client may ask, and what /metrics says meanwhile and afterwards."""
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    say("starting vllm serve --kv-policy headaware")
    with running_server(
        model, "--kv-policy", "headaware", port=free_port(), log=log
    ) as (url, _):
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        checks = {}
        for name, check in (
            ("chat", chat),
            ("chat_streamed", chat_streamed),
            ("completion", completion),
            ("completion_streamed", completion_streamed),
            ("eight_at_once", eight_at_once),
        ):
            checks[name] = check(client)
            say(f"{name}: {checks[name]}")
        checks |= long_request(client, url)
        say(str(checks))
        time.sleep(1.5)
        idle = metrics(url)
        checks["idle_holds_nothing"] = idle["vllm_headaware_kv_used_bytes"] == 0
        checks["freed_by_window"] = idle['vllm_headaware_blocks_freed_total{"window"}'] > 0
    return checks


def chat(client: OpenAI, stream: bool = False) -> bool:
    """A plain question."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=24,
        temperature=0,
        stream=stream,
    )
    if stream:
        text = "".join(part.choices[0].delta.content or "" for part in answer)
    else:
        text = answer.choices[0].message.content
    return "Paris" in text


def chat_streamed(client: OpenAI) -> bool:
    """The same, in parts."""
    return chat(client, stream=True)


def completion(client: OpenAI, stream: bool = False) -> bool:
    """A sentence to continue."""
    answer = client.completions.create(
        model="smollm2", prompt="One two three four five", max_tokens=8, temperature=0,
        stream=stream,
    )  # fmt: skip
    if stream:
        text = "".join(part.choices[0].text for part in answer)
    else:
        text = answer.choices[0].text
    return "six" in text.lower()


def completion_streamed(client: OpenAI) -> bool:
    """The same, in parts."""
    return completion(client, stream=True)


def eight_at_once(client: OpenAI) -> bool:
    """Eight clients, all answered right."""
    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(lambda _: chat(client), range(8)))


def long_request(client: OpenAI, url: str) -> dict[str, bool]:
    """7,000 tokens: the needle at its start is found, and the metrics obey their sums meanwhile."""
    filler = "The road went on over the hills and through the woods. " * 583
    prompt = (
        "<|im_start|>user\nA secret number is hidden in the following text. Remember it.\n\n"
        f"The secret number of Tokyo is 47913. {filler}\n\n"
        "What is the secret number of Tokyo in the text above?<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = client.completions.create(
        model="smollm2", prompt=prompt, max_tokens=64, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    text, seen, tokens = "", {}, 0
    for part in answer:
        if part.choices:
            text += part.choices[0].text
            seen = metrics(url) if len(text) > 40 and not seen else seen
        tokens = part.usage.prompt_tokens if part.usage else tokens
    heads = sum(v for k, v in seen.items() if k.startswith("vllm_headaware_kv_head_bytes"))
    classes = sum(v for k, v in seen.items() if k.startswith("vllm_headaware_kv_class_bytes"))
    used = seen.get("vllm_headaware_kv_used_bytes", 0)
    say(f"7,000 tokens: {tokens} tokens, {text[:60]!r}, holds {used / 2**20:.1f} MiB")
    return {
        "long_answered": tokens >= 7000 and len(text) > 0,
        "long_found": "47913" in text,
        "metrics_sum_up": used > 0 and abs(heads - used) < 1 and classes == used,
        "metrics_save": used < 0.5 * seen.get("vllm_headaware_kv_dense_equivalent_bytes", 0),
    }


def metrics(url: str) -> dict[str, float]:
    """vllm_headaware_* samples by name and the label values that are ours."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    samples = {}
    for line in text.splitlines():
        if line.startswith("vllm_headaware_"):
            name, value = line.rsplit(" ", 1)
            family, _, labels = name.partition("{")
            own = [
                f'"{value}"'
                for key, value in re.findall(r'(\w+)="([^"]*)"', labels)
                if key not in ("model_name", "engine")
            ]
            samples[family + (f"{{{','.join(own)}}}" if own else "")] = float(value)
    return samples


def say(text: str) -> None:
    """A progress line."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
