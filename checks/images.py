"""Models that take images, tiny and random, in the real engine against the plain-torch reference.

    python -m checks.images              all
    python -m checks.images Llava        only this one

The decoder's heads are under the policy and the vision tower is the family's own. Each model
answers a prompt of text alone and one with an image; tokens are judged as in checks.families. The
last line is one JSON object. Exit status: 0 when every token is right, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from checks.families import NEW_TOKENS, TIE, apart, import_all
from testbench import vision
from testbench.families import SIZES
from testbench.multimodal import (
    FAMILIES,
    IMAGE_TOKEN,
    PIXELS,
    make_multimodal_model,
    make_processor,
)
from testbench.progress import say
from testbench.random_profile import write_profile
from testbench.small_requests import POLICY, make_prompts
from vllm_headaware.plan.plan_json import plan_from_dict, plan_to_dict
from vllm_headaware.vllm_compat.carrier import get_plan

BEFORE, AFTER = make_prompts(SIZES["vocab_size"], (11, 150))


def make_image() -> Any:
    """Noise, RGB."""
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def serve(folder: Path, name: str) -> tuple[list[tuple[list[int], list[int]]], dict[str, Any]]:
    """Make a model; prompts, as the engine saw them, and its greedy tokens; and its plan."""
    from vllm import LLM, SamplingParams

    family = FAMILIES[name]
    make_multimodal_model(folder, family)
    write_profile(folder)
    llm: Any = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_batched_tokens=128,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 1, "video": 0},
        **{**POLICY, "kv_prefill_window": 0},
    )
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    marked = [*BEFORE, *family["marks"][0], IMAGE_TOKEN, *family["marks"][1], *AFTER]
    prompts: list[Any] = [
        {"prompt_token_ids": [*BEFORE, *AFTER]},
        {"prompt_token_ids": marked, "multi_modal_data": {"image": make_image()}},
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    plan = get_plan(llm.llm_engine.vllm_config)
    assert plan is not None
    answers = [(list(o.prompt_token_ids), list(o.outputs[0].token_ids)) for o in outputs]
    return answers, plan_to_dict(plan)


def judge(
    folder: Path, name: str, answers: list[tuple[list[int], list[int]]], plan: dict[str, Any]
) -> dict[str, Any]:
    """How many tokens are not the reference's."""
    import torch

    from testbench.hf_reference import HFReference, rules_of

    pixels = make_processor(FAMILIES[name]).image_processor(make_image(), return_tensors="pt")

    def seen(ids: list[int]) -> dict[str, Any] | None:
        """What a forward pass of those tokens takes besides."""
        if IMAGE_TOKEN not in ids:
            return None
        kinds = torch.tensor([[int(token == IMAGE_TOKEN) for token in ids]])
        return {**pixels, **({"mm_token_type_ids": kinds} if "image_grid_thw" in pixels else {})}

    def lags(reference: HFReference, look: bool = True) -> list[float]:
        return [
            float(lag)
            for prompt, own in answers
            for lag in reference.lags(prompt, own, seen([*prompt, *own]) if look else None)
        ]

    ruled = HFReference(folder, rules_of(plan_from_dict(plan)))
    own = lags(ruled)
    return {
        "tokens": len(own),
        "image_tokens": sum(prompt.count(IMAGE_TOKEN) for prompt, _ in answers),
        "mismatches": sum(lag > TIE for lag in own),
        "largest_lag": max(own),
        "hidden_matters": max(lags(HFReference(folder))) > TIE,
        "image_matters": max(lags(ruled, look=False)) > TIE,
    }


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(FAMILIES):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    vision.enable()
    import_all()
    served: dict[str, Any] = {}
    for name in args.names or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            answers, plan = apart(serve, Path(folder), name)
            served[name] = apart(judge, Path(folder), name, answers, plan)
        say(f"{name}: {served[name]}")
    right = all(
        one["hidden_matters"] and one["image_matters"] and not one["mismatches"]
        for one in served.values()
    )
    print(json.dumps({"ok": right, "served": served}), flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
