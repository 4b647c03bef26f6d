"""vLLM with one process per tensor-parallel rank, driven from a process of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.engine.child import report, run_child


def generate_on_ranks(model: Path, prompts: list[list[int]], engine: dict[str, Any]) -> Any:
    """Greedy tokens of every prompt, and the plan; see run_child."""
    ranks = engine["tensor_parallel_size"]
    cores = sorted(os.sched_getaffinity(0))
    binding = "|".join(str(core) for core in cores[:ranks])
    environment = {"VLLM_CPU_OMP_THREADS_BIND": binding}
    return run_child("tests.engine.ranks", [str(model), prompts, engine], environment)


def main() -> None:
    """Generate and print."""
    model, prompts, engine = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from vllm_headaware.plan.plan_json import plan_to_dict
    from vllm_headaware.vllm_compat.carrier import get_plan

    llm = LLM(model, dtype="float32", max_model_len=1024, enforce_eager=True, **engine)
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    plan = get_plan(llm.llm_engine.vllm_config)
    report(
        {
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "plan": plan_to_dict(plan) if plan else None,
        }
    )


if __name__ == "__main__":
    main()
