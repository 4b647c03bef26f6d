"""One contender of `eval long`: the real engine in a process of its own, given right answers.

Run as `python -m vllm_headaware.eval.long_side` with a JSON object on stdin: model, options of
vllm.LLM, prompts as dicts of prompt, answer and before. A line of JSON for each, as it comes.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

TOP = 8
"""Tokens whose log probabilities are kept at each place, besides the right one."""


def main() -> None:
    """Serve the prompts one after the other."""
    asked = json.load(sys.stdin)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM

    from vllm_headaware.eval.forced import Forced

    options: dict[str, Any] = asked["options"]
    llm = LLM(asked["model"], seed=0, max_num_seqs=1, logits_processors=[Forced], **options)
    for number, prompt in enumerate(asked["prompts"]):
        print(json.dumps(serve(llm, number, **prompt)), flush=True)


def serve(
    llm: Any, number: int, prompt: list[int], answer: list[int], before: list[int]
) -> dict[str, Any]:
    """What the engine thinks of an answer, and what it holds while it gives it.

    Returns:
        losses: negative log probability of each token of the answer, nats; ranks: of each among all
        tokens, from 1; tops: the TOP most likely there, by token id; bytes: of KV that the request
        holds at the end.
    """
    from vllm import SamplingParams

    from vllm_headaware.cache.groups import block_bytes
    from vllm_headaware.eval.forced import KEY

    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    pool, config = scheduler.kv_cache_manager.block_pool, scheduler.kv_cache_config
    if before:
        one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
        engine.add_request(f"{number} before", {"prompt_token_ids": before}, one)
        while engine.has_unfinished_requests():
            engine.step()
    params = SamplingParams(
        temperature=0,
        max_tokens=len(answer),
        ignore_eos=True,
        detokenize=False,
        logprobs=TOP,
        extra_args={KEY: answer},
    )
    engine.add_request(f"{number}", {"prompt_token_ids": prompt}, params)
    final: Any = None
    held = 0
    while engine.has_unfinished_requests():
        outputs = engine.step()
        used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        held = used or held
        for output in outputs:
            final = output.outputs[0]
    entries = [row[token] for row, token in zip(final.logprobs, answer, strict=True)]
    return {
        "losses": [round(-entry.logprob, 5) for entry in entries],
        "ranks": [entry.rank for entry in entries],
        "tops": [
            {str(token): round(entry.logprob, 4) for token, entry in row.items()}
            for row in final.logprobs
        ],
        "bytes": held * block_bytes(config),
    }


if __name__ == "__main__":
    main()
