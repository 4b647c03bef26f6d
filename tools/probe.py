"""Measure one engine in one process, with or without a KV policy; one JSON object on stdout.

    python tools/probe.py MODEL --task kv8k,needle,decode [--kv-policy headaware] [--uninstalled]

kv8k    blocks a request of 8,192 tokens really holds while it decodes, times bytes per block
needle  accuracy on 20 held-out needle prompts of 2,000 tokens
decode  decode tokens/s of 8 requests at 4k context, counting only steps in which all 8 decode
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from typing import Any

CONTEXT, BATCH, DECODE_STEPS = 4096, 8, 48
NEEDLES, NEEDLE_TOKENS = 20, 2000


def main() -> int:
    """Build the engine and run the tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--task", default="kv8k,needle,decode")
    parser.add_argument("--kv-policy", default=None)
    parser.add_argument("--uninstalled", action="store_true", help="load no plugin at all")
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if args.uninstalled:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm import LLM

    policy = {"kv_policy": args.kv_policy} if args.kv_policy else {}
    # Both sides run eagerly: compilation would only add its own time to every measurement.
    llm = LLM(args.model, dtype="float32", max_model_len=8192, enforce_eager=True, **policy)
    tasks = {"kv8k": measure_kv, "needle": measure_needles, "decode": measure_decode}
    result: dict[str, Any] = {}
    for name in args.task.split(","):
        started = time.monotonic()
        result.update(tasks[name](llm))
        print(f"{args.kv_policy or 'stock'} {name}: {time.monotonic() - started:.0f} s, {result}",
              file=sys.stderr, flush=True)  # fmt: skip
    print(json.dumps(result), flush=True)
    return 0


def scheduler_of(llm: Any) -> Any:
    """The scheduler of an in-process engine."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def block_bytes(llm: Any) -> int:
    """Bytes of one block: the KV buffer as allocated, divided by its blocks."""
    config = scheduler_of(llm).kv_cache_config
    return sum({tensor.offset: tensor.size for tensor in config.kv_cache_tensors[:1]}.values()) // (
        config.num_blocks
    )


def add_random_request(llm: Any, name: str, tokens: int, max_tokens: int, seed: int) -> None:
    """Queue a prompt of random tokens; greedy, and it does not stop early."""
    from vllm import SamplingParams

    rng = random.Random(seed)
    prompt = {"prompt_token_ids": [rng.randrange(100, 40000) for _ in range(tokens)]}
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    llm.llm_engine.add_request(name, prompt, params)


def measure_kv(llm: Any) -> dict[str, Any]:
    """Blocks held at 8,192 tokens, read from the pool before the last step."""
    scheduler = scheduler_of(llm)
    pool = scheduler.kv_cache_manager.block_pool
    add_random_request(llm, "8k", 8192 - 16, 16, seed=8)
    held = 0
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        if scheduler.running:
            held = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    return {
        "kv_blocks_8k": held,
        "kv_block_bytes": block_bytes(llm),
        "kv_bytes_8k": held * block_bytes(llm),
    }


def measure_needles(llm: Any) -> dict[str, Any]:
    """Held-out needle accuracy, 0 to 1."""
    from vllm import SamplingParams

    from vllm_headaware.eval.needle import needle_samples, score_answer

    samples = needle_samples(
        llm.get_tokenizer(), split="evaluation", count=NEEDLES, tokens=NEEDLE_TOKENS, seed=2026
    )
    outputs = llm.generate(
        [{"prompt_token_ids": sample.prompt_token_ids} for sample in samples],
        SamplingParams(temperature=0, max_tokens=32),
    )
    scores = [
        score_answer(sample, output.outputs[0].text)
        for sample, output in zip(samples, outputs, strict=True)
    ]
    return {"needle": statistics.mean(scores), "needle_samples": len(scores)}


def measure_decode(llm: Any) -> dict[str, Any]:
    """Decode throughput with all requests past their prompt; prefill time beside it."""
    scheduler = scheduler_of(llm)
    prompt = CONTEXT - DECODE_STEPS
    for index in range(BATCH):
        # Requests prefill one after another: early ones decode longer, all end together or later.
        add_random_request(llm, f"decode-{index}", prompt, DECODE_STEPS * 4, seed=index)
    started, seconds = time.monotonic(), []
    prefill_seconds = 0.0
    while len(seconds) < DECODE_STEPS:
        begin = time.monotonic()
        llm.llm_engine.step()
        running = scheduler.running
        if len(running) == BATCH and all(r.num_computed_tokens > prompt for r in running):
            prefill_seconds = prefill_seconds or begin - started
            seconds.append(time.monotonic() - begin)
    llm.llm_engine.abort_request([f"decode-{index}" for index in range(BATCH)])
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    median = statistics.median(seconds[2:])
    return {
        "decode_tokens_per_second": BATCH / median,
        "decode_step_seconds": median,
        "decode_prefill_seconds": prefill_seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
