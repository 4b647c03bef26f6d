"""vLLM on random weights in the geometry of Llama-3.1-8B, one side in one process, as JSON lines.

Run as `python -m checks.gpu.engine stock|fp8|turboquant|ours [--dry-run]`. Works from a checkout:
the plugin is registered by hand.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
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
CHUNK = 8192
NEEDED = (
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.warmup.kernel_warmup",
)
"""What vLLM imports before it uses a GPU, which takes as long as a part."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=list(SIDES))
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, in the interpreter")
    parser.add_argument("--wait", action="store_true", help="import, then wait for a line")
    parser.add_argument("--compile", action="store_true", help="as vLLM does by default; slower")
    parser.add_argument("--layers", type=int, help="of the model; all of Llama-3.1-8B's are 32")
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    if args.dry_run:
        from testbench.triton_interpreter import enable

        enable(runner=True)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from checks.gpu.shapes import DRY, REAL

    if args.wait:
        importlib.import_module("vllm").LLM  # noqa: B018
        for name in () if args.dry_run else NEEDED:
            importlib.import_module(name)
        sys.stdin.readline()

    scale = DRY if args.dry_run else REAL
    measure(args.side, scale, args.layers, args.compile, args.dry_run)


def measure(name: str, scale: Any, layers: int | None, compiled: bool, dry: bool) -> None:
    """Every load: until all prompts are read, a decode step after that, and what fits."""
    longest = max(load.tokens for load in scale.engine) + scale.new_tokens
    folder = Path(tempfile.mkdtemp())
    import vllm_headaware.plugin
    from testbench.blank_model import write_blank_model

    geometry = vars(scale.geometry) | ({"layers": layers} if layers else {})
    write_blank_model(folder, longest, **geometry)

    vllm_headaware.plugin.register()
    from vllm import LLM

    from vllm_headaware.cache.groups import block_bytes

    most = max(load.requests for load in scale.engine)
    begin = time.perf_counter()
    llm = LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=longest,
        max_num_seqs=most,
        max_num_batched_tokens=CHUNK,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.85,
        enforce_eager=dry,
        compilation_config={
            "cudagraph_capture_sizes": sorted({load.requests for load in scale.engine}),
            **({} if compiled else {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}),
        },
        **SIDES[name],
    )
    say = {"part": "engine", "side": name, "layers": geometry["layers"]}
    print(json.dumps({**say, "start_s": round(time.perf_counter() - begin, 1)}), flush=True)
    engine: Any = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    block_size = block_bytes(scheduler.kv_cache_config)
    serve(engine, pool, 2, scale.engine[0].tokens // 8, scale.new_tokens, 4)  # warms up
    for load in scale.engine:
        read_s, steps, held = serve(
            engine, pool, load.requests, load.tokens, scale.new_tokens, scale.decode_steps
        )
        each = sorted(steps)[len(steps) // 2]
        line = {
            **say,
            "load": str(load),
            "prefill_s": round(read_s, 4),
            "decode_step_ms": round(each * 1e3, 3),
            "decode_step_ms_quickest": round(min(steps) * 1e3, 3),
            "tokens_per_s": round(load.requests / each, 1),
            "kv_mb_per_request": round(held * block_size / load.requests / 1e6, 3),
            "requests_that_fit_in_40_GB": int(40e9 / (held * block_size / load.requests)),
        }
        print(json.dumps(line), flush=True)


def serve(
    engine: Any, pool: Any, requests: int, tokens: int, new: int, steps: int
) -> tuple[float, list[float], int]:
    """Read all prompts, then decode so many steps with all of them, then take them out.

    Returns:
        seconds until every request had its first token, seconds of each step after that, blocks
        held at its end.
    """
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=new, ignore_eos=True, temperature=0, detokenize=False)
    free, ids = pool.get_num_free_blocks(), []
    for i in range(requests):
        prompt: Any = {"prompt_token_ids": [(7 * i + j) % 31000 + 10 for j in range(tokens)]}
        ids.append(str(time.monotonic_ns()))
        engine.add_request(ids[-1], prompt, params)
    begin, begun = time.perf_counter(), set[str]()
    while len(begun) < requests:
        begun.update(o.request_id for o in engine.step() if o.outputs[0].token_ids)
    read_s, clock = time.perf_counter() - begin, []
    for _ in range(steps):
        before = time.perf_counter()
        produced = engine.step()
        if len(produced) == requests:
            clock.append(time.perf_counter() - before)
    held = free - pool.get_num_free_blocks()
    engine.abort_request(ids)
    while engine.has_unfinished_requests():
        engine.step()
    return read_s, clock, held


if __name__ == "__main__":
    main()
