"""vLLM on random weights in the geometry of Llama-3.1-8B, one side in one process, as JSON lines.

Run as `python -m checks.gpu.engine stock|fp8|turboquant|ours [--dry-run]`. Works from a checkout:
the plugin is registered by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES: dict[str, dict[str, Any]] = {
    "stock": {},
    "fp8": {"kv_cache_dtype": "fp8"},
    "turboquant": {"kv_cache_dtype": "turboquant_4bit_nc"},
    "ours": {"kv_policy": "headaware"},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=list(SIDES))
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, in the interpreter")
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    if args.dry_run:
        from testbench.triton_interpreter import enable

        enable(runner=True)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from checks.gpu.shapes import DRY, REAL

    measure(args.side, DRY if args.dry_run else REAL, args.dry_run)


def measure(name: str, scale: Any, dry: bool) -> None:
    """Every load: TTFT of the batch, time of a decode step, and what fits."""
    longest = max(load.tokens for load in scale.engine) + scale.new_tokens + 32
    folder = Path(tempfile.mkdtemp())
    import vllm_headaware.plugin
    from testbench.blank_model import write_blank_model

    write_blank_model(folder, longest, **vars(scale.geometry))

    vllm_headaware.plugin.register()
    from vllm import LLM, SamplingParams

    begin = time.perf_counter()
    llm = LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=longest,
        max_num_seqs=max(load.requests for load in scale.engine),
        enable_prefix_caching=False,
        gpu_memory_utilization=0.8,
        enforce_eager=dry,
        **SIDES[name],
    )
    say = {"part": "engine", "side": name}
    print(json.dumps({**say, "start_s": round(time.perf_counter() - begin, 1)}), flush=True)
    core: Any = llm.llm_engine.engine_core
    scheduler = core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool

    def run(load: Any, new: int) -> tuple[float, int]:
        params = SamplingParams(max_tokens=new, ignore_eos=True, temperature=0, detokenize=False)
        for i in range(load.requests):
            prompt: Any = {
                "prompt_token_ids": [(7 * i + j) % 31000 + 10 for j in range(load.tokens)]
            }
            llm.llm_engine.add_request(f"{time.monotonic_ns()}", prompt, params)
        free, begin, held = pool.get_num_free_blocks(), time.perf_counter(), 0
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
            held = max(held, free - pool.get_num_free_blocks())
        return time.perf_counter() - begin, held

    blocks = pool.num_gpu_blocks - 1
    for load in scale.engine:
        run(load, 2)
        first, _ = run(load, 1)
        both, held = run(load, scale.new_tokens)
        each = (both - first) / (scale.new_tokens - 1)
        print(
            json.dumps(
                {
                    **say,
                    "load": str(load),
                    "prefill_s": round(first, 4),
                    "decode_step_ms": round(each * 1e3, 3),
                    "tokens_per_s": round(load.requests / each, 1),
                    "kv_share_of_pool": round(held / blocks, 5),
                    "requests_that_fit": int(blocks // max(held / load.requests, 1e-9)),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
