"""vLLM with one process per tensor-parallel rank, driven from a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = "RANKS "


def generate_on_ranks(model: Path, prompts: list[list[int]], engine: dict[str, Any]) -> Any:
    """Greedy tokens of every prompt, and the plan.

    Raises:
        AssertionError: the process failed; its last output is in the message.
    """
    ranks = engine["tensor_parallel_size"]
    cores = sorted(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.ranks", json.dumps([str(model), prompts, engine])],
        cwd=ROOT,
        env={
            **os.environ,
            "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(c) for c in cores[:ranks]),
            "VLLM_LOGGING_LEVEL": "WARNING",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    reports = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert reports, f"ranks failed ({done.returncode})\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return json.loads(reports[-1].removeprefix(MARK))


def main() -> None:
    """Generate and print."""
    model, prompts, engine = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from vllm_headaware.vllm_compat.carrier import get_plan

    llm = LLM(model, dtype="float32", max_model_len=1024, enforce_eager=True, **engine)
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    plan = get_plan(llm.llm_engine.vllm_config)
    report = {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "plan": plan.to_dict() if plan else None,
    }
    print(MARK + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
