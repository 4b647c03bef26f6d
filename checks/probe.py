"""Measure one engine: KV bytes really held, needle accuracy, decode speed, time to first token.

    python -m checks.probe --model DIR --kv-policy headaware --task kv8k,needle,decode --json

One process is one engine. Leave --kv-policy out to measure stock vLLM with the plugin installed,
add --uninstalled to measure it without.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from testbench.engine import SteppedEngine
from testbench.progress import elapsed_seconds, say

TOTAL_TOKENS = 8192
KV_NEW_TOKENS = 32
DECODE_STEPS = 40
DECODE_WARM_UP_STEPS = 5
NEEDLE_COUNT = 20
NEEDLE_TOKENS = 2000
NEEDLE_SEED = 2
TEXT_STRETCHES = 6
TTFT_REQUESTS = 3
SHORT_CONTEXT = 512
SHORT_STEPS = 200


def kv8k(engine: SteppedEngine, args: argparse.Namespace) -> dict[str, Any]:
    """Blocks and bytes one request of 8,192 tokens holds at its last decode step."""
    prompt = random_prompt(engine, TOTAL_TOKENS - KV_NEW_TOKENS, seed=1)
    engine.add("kv8k", prompt, KV_NEW_TOKENS)
    held: list[int] = []
    generated = 0
    start = time.monotonic()
    while generated < KV_NEW_TOKENS:
        last = engine.held_blocks
        generated = engine.step().get("kv8k", generated)
        held.append(last)
    return {
        "tokens": TOTAL_TOKENS,
        "blocks": held[-1],
        "blocks_peak": max(held),
        "blocks_after": engine.held_blocks,
        "block_bytes": engine.block_bytes,
        "bytes": held[-1] * engine.block_bytes,
        "bytes_peak": max(held) * engine.block_bytes,
        "seconds": time.monotonic() - start,
    }


def needle(engine: SteppedEngine, args: argparse.Namespace) -> dict[str, Any]:
    """Mean score on held-out needle prompts."""
    from vllm_headaware.tasks.needle import needle_samples, score_answer

    tokenizer = engine.llm.get_tokenizer()
    samples = needle_samples(
        tokenizer,
        split="evaluation",
        count=args.needle_count,
        tokens=args.needle_tokens,
        seed=NEEDLE_SEED,
    )
    longest = max(len(tokenizer.encode(sample.reply)) for sample in samples)
    start = time.monotonic()
    texts = engine.chat([sample.prompt_token_ids for sample in samples], longest + 16)
    scores = [score_answer(s, text) for s, text in zip(samples, texts, strict=True)]
    return {
        "accuracy": statistics.fmean(scores),
        "scores": scores,
        "prompts": len(samples),
        "prompt_tokens": [len(sample.prompt_token_ids) for sample in samples],
        "seconds": time.monotonic() - start,
    }


def perplexity(engine: SteppedEngine, args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity of held-out text, in stretches of --context tokens; the first half of a stretch
    only gives context."""
    from vllm_headaware.tasks.text import text_windows

    tokenizer, size = engine.llm.get_tokenizer(), min(args.context, TOTAL_TOKENS - 8)
    stretches = text_windows(tokenizer, split="evaluation", count=TEXT_STRETCHES, tokens=size)
    losses: list[float] = []
    for stretch in stretches:
        losses += [-value for value in engine.prompt_logprobs(stretch)[size // 2 :]]
    return {
        "perplexity": math.exp(statistics.fmean(losses)),
        "tokens": len(losses),
        "context": size,
    }


def decode(engine: SteppedEngine, args: argparse.Namespace) -> dict[str, Any]:
    """Decode speed of a full batch of distinct prompts, pure decode steps only."""
    return decode_speed(engine, args.batch, args.context, DECODE_STEPS)


def short(engine: SteppedEngine, args: argparse.Namespace) -> dict[str, Any]:
    """Decode speed of one request of 512 tokens: what the policy costs where it saves nothing."""
    return decode_speed(engine, 1, SHORT_CONTEXT, SHORT_STEPS)


def ttft(engine: SteppedEngine, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds from adding a request of --context tokens to its first token, one after the other."""
    seconds = []
    for number in range(TTFT_REQUESTS):
        name = f"ttft{number}"
        engine.add(name, random_prompt(engine, args.context - 8, seed=50 + number), 2)
        start = time.perf_counter()
        while name not in engine.step():
            pass
        seconds.append(time.perf_counter() - start)
        engine.abort([name])
    return {
        "seconds": statistics.median(seconds),
        "requests": seconds,
        "tokens": args.context - 8,
    }


def decode_speed(engine: SteppedEngine, batch: int, context: int, steps: int) -> dict[str, Any]:
    """Median step of `batch` requests while their contexts grow through `context` tokens."""
    names = [f"decode{number}" for number in range(batch)]
    total_steps = DECODE_WARM_UP_STEPS + steps
    # While later prompts are prefilled, earlier requests go on decoding: a few tokens for each.
    prompt_tokens = min(context - steps // 2, TOTAL_TOKENS - total_steps - 4 * batch - 8)
    for number, name in enumerate(names):
        prompt = random_prompt(engine, prompt_tokens, seed=100 + number)
        engine.add(name, prompt, TOTAL_TOKENS - prompt_tokens)
    start = time.monotonic()
    done: dict[str, int] = {}
    while len(done) < batch:
        done.update(engine.step())
    prefill_seconds = time.monotonic() - start

    seconds: list[float] = []
    for _ in range(total_steps):
        before, start = done, time.perf_counter()
        done = engine.step()
        seconds.append(time.perf_counter() - start)
        if {name: count - before[name] for name, count in done.items()} != dict.fromkeys(names, 1):
            raise RuntimeError(f"not a pure decode step of {batch}: {before} then {done}")
    held = engine.held_blocks  # all decode: no chunk of a prompt is in flight any more
    engine.abort(names)
    seconds = seconds[DECODE_WARM_UP_STEPS:]
    median = statistics.median(seconds)
    return {
        "tokens_per_second": batch / median,
        "median_step_seconds": median,
        "step_seconds": seconds,
        "batch": batch,
        "context_tokens": [prompt_tokens + count for count in done.values()],
        "blocks": held,
        "bytes": held * engine.block_bytes,
        "block_bytes": engine.block_bytes,
        "pool_blocks": engine.num_blocks,
        "prefill_seconds": prefill_seconds,
        "prefill_tokens_per_second": batch * prompt_tokens / prefill_seconds,
    }


TASKS: dict[str, Callable[[SteppedEngine, argparse.Namespace], dict[str, Any]]] = {
    "kv8k": kv8k,
    "needle": needle,
    "decode": decode,
    "perplexity": perplexity,
    "ttft": ttft,
    "short": short,
}
DEFAULT_TASKS = ("kv8k", "needle", "decode")


def random_prompt(engine: SteppedEngine, num_tokens: int, seed: int) -> list[int]:
    """Random words of the vocabulary: no two prompts share a prefix."""
    vocabulary = engine.llm.get_tokenizer().vocab_size
    rng = random.Random(seed)
    return [rng.randrange(vocabulary // 2, vocabulary) for _ in range(num_tokens)]


def task_list(text: str) -> list[str]:
    """Parse kv8k,needle,decode."""
    tasks = text.split(",")
    for task in tasks:
        if task not in TASKS:
            raise argparse.ArgumentTypeError(f"unknown task {task!r}; know {', '.join(TASKS)}")
    return tasks


def policy_option(text: str) -> tuple[str, Any]:
    """`window=256` as an argument of LLM(); the type is that of the field."""
    from vllm_headaware.config import PARSERS

    name, _, value = text.partition("=")
    return f"kv_{name}", PARSERS.get(name, str)(value)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--kv-policy", help="none given: stock vLLM")
    parser.add_argument("--uninstalled", action="store_true", help="load no vLLM plugin")
    parser.add_argument(
        "--task", type=task_list, default=list(DEFAULT_TASKS), metavar="NAME,NAME,..."
    )
    parser.add_argument("--needle-count", type=int, default=NEEDLE_COUNT, metavar="PROMPTS")
    parser.add_argument("--needle-tokens", type=int, default=NEEDLE_TOKENS, metavar="TOKENS")
    parser.add_argument(
        "--context", type=int, default=4096, metavar="TOKENS", help="of ttft, decode"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="REQUESTS", help="of decode")
    parser.add_argument(
        "--policy-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further field of the policy, such as retrieval_dtype=int4",
    )
    parser.add_argument("--enforce-eager", action="store_true", help="no torch.compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and only that")
    args = parser.parse_args()

    who = args.kv_policy or ("uninstalled" if args.uninstalled else "stock")
    say(f"{who}: starting the engine")
    engine = SteppedEngine(
        args.model,
        args.kv_policy,
        plugins=not args.uninstalled,
        enforce_eager=args.enforce_eager,
        **dict(map(policy_option, args.policy_option)),
    )
    result: dict[str, Any] = {"policy": who, "startup_seconds": elapsed_seconds()}
    for task in args.task:
        say(f"{who}: {task}")
        result[task] = TASKS[task](engine, args)
        if engine.held_blocks:
            raise RuntimeError(f"{engine.held_blocks} blocks are still held after {task}")
    result["seconds"] = elapsed_seconds()
    say(f"{who}: done")
    print(json.dumps(result) if args.json else json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
