"""Every model family that is served, tiny and random: tokens against the plain-torch reference.

    python -m checks.families               all, one after the other
    python -m checks.families Gemma-2       only these
    python -m checks.families --runner v2   model runner V2, what GPUs run, interpreted

The reference is the family's own code in transformers under the visibility rule. A token is right
if it is the reference's first choice or as likely. Families that no policy covers must be refused
with their reason. The last line is one JSON object. Exit status: 0 when all of that holds, else 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from testbench.families import FAMILIES, REFUSED, SIZES, make_family_model
from testbench.progress import say
from testbench.random_profile import write_profile
from testbench.small_requests import POLICY, make_prompts
from testbench.triton_interpreter import enable
from vllm_headaware.plan.plan_json import plan_from_dict, plan_to_dict
from vllm_headaware.vllm_compat.carrier import get_plan

TIE = 0.01
"""Log probability by which a token may lag: sums of float32 come in another order."""
PROMPTS = make_prompts(SIZES["vocab_size"], (5, 97, 333))
FEW_PROMPTS = make_prompts(SIZES["vocab_size"], (5, 130))
"""Where every kernel is interpreted."""
NEW_TOKENS = 12
TRITON_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
"""Of a size that the Triton kernels know, as many channels in all."""


Answers = list[tuple[list[int], list[int]]]
"""Prompts as the engine saw them, and what it said."""


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns or raises in a process of its own, which has all imports already."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, args)


def generate(
    model: Path, prompts: Sequence[dict[str, Any]], **more: Any
) -> tuple[Answers, dict[str, Any]]:
    """The real engine's greedy tokens under the policy, and its plan.

    Args:
        model: a folder, which gets a random profile.
        prompts: as vLLM takes them.
        more: further arguments of vllm.LLM.
    """
    from vllm import LLM, SamplingParams

    write_profile(model)
    llm: Any = LLM(
        str(model),
        dtype="float32",
        max_model_len=1024,
        max_num_batched_tokens=128,
        max_num_seqs=4,
        **{**POLICY, "kv_prefill_window": 0, "enforce_eager": True, **more},
    )
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    outputs = llm.generate(list(prompts), params, use_tqdm=False)
    plan = get_plan(llm.llm_engine.vllm_config)
    assert plan is not None
    answers = [(list(o.prompt_token_ids), list(o.outputs[0].token_ids)) for o in outputs]
    return answers, plan_to_dict(plan)


def serve(
    folder: Path, options: dict[str, Any], prompts: list[list[int]], **more: Any
) -> tuple[Answers, dict[str, Any]]:
    """Make a model, and what generate() says of it; more: its further arguments."""
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    return generate(make_family_model(folder, options), asked, skip_tokenizer_init=True, **more)


def judge(folder: Path, answers: Answers, plan: dict[str, Any]) -> dict[str, Any]:
    """How many tokens are not the reference's."""
    from testbench.hf_reference import HFReference, rules_of

    def lags(reference: HFReference) -> list[float]:
        return [float(lag) for prompt, own in answers for lag in reference.lags(prompt, own)]

    own = lags(HFReference(folder, rules_of(plan_from_dict(plan))))
    return {
        "tokens": len(own),
        "mismatches": sum(lag > TIE for lag in own),
        "largest_lag": max(own),
        "hidden_matters": max(lags(HFReference(folder))) > TIE,
        "classes": [c["name"] for c in plan["classes"]],
    }


def refusal(options: dict[str, Any], folder: Path) -> str:
    """What the engine says of a family that no policy covers; empty if it serves it."""
    try:
        serve(folder, options, PROMPTS)
    except Exception as error:  # vLLM wraps what a worker raises
        return f"{error}"
    return ""


def prepare() -> None:
    """Set the environment, and import what processes need: what takes the time of a small model."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm.model_executor.models import registry

    import testbench.hf_reference  # noqa: F401

    # vLLM looks into model classes in processes of their own, for the sake of CUDA.
    vars(registry)["_run_in_subprocess"] = lambda look: look()


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--runner", choices=["v1", "v2"], default="v1", help="vLLM's model runner")
    args = parser.parse_args(argv)
    unknown = set(args.names) - {*FAMILIES, *REFUSED}
    if unknown:
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    if args.runner == "v2":
        enable(runner=True)
    prepare()
    served: dict[str, Any] = {}
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    prompts = FEW_PROMPTS if args.runner == "v2" else PROMPTS
    chosen = args.names or [*FAMILIES, *REFUSED]
    for number, name in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory() as folder:
            if name in REFUSED:
                options, reason = REFUSED[name]
                refused[name] = apart(refusal, options, Path(folder))
                if reason not in refused[name]:
                    failed[name] = f"not refused for {reason}: {refused[name]}"
                what = f"refused: {refused[name]}"
            else:
                try:
                    options = {**FAMILIES[name], **(TRITON_HEADS if args.runner == "v2" else {})}
                    answers, plan = apart(serve, Path(folder), options, prompts)
                    # vLLM's own backend for some families changes transformers' classes.
                    served[name] = apart(judge, Path(folder), answers, plan)
                    what = f"{served[name]}"
                except Exception as error:  # the others are still to be seen
                    failed[name] = what = f"{type(error).__name__}: {error}"
        say(f"{number} of {len(chosen)}: {name}: {what[:400]}")
    result = {
        "families": len(served),
        "served": served,
        "tokens_checked": sum(one["tokens"] for one in served.values()),
        "mismatches": sum(one["mismatches"] for one in served.values()),
        "refused": refused,
        "failed": failed,
    }
    result["ok"] = (
        not result["mismatches"]
        and not failed
        and all(one["hidden_matters"] for one in served.values())
    )
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
