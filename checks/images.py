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
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from checks.families import TIE, Answers, apart, generate, prepare
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
from testbench.small_requests import make_prompts
from vllm_headaware.plan.plan_json import plan_from_dict

BEFORE, AFTER = make_prompts(SIZES["vocab_size"], (11, 150))


def make_image() -> Any:
    """Noise, RGB."""
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def serve(folder: Path, name: str) -> tuple[Answers, dict[str, Any]]:
    """Make a model, and what generate() says of it: text alone, and with an image."""
    family = FAMILIES[name]
    before, after = family["marks"]
    marked = [*BEFORE, *before, IMAGE_TOKEN, *after, *AFTER]
    prompts: list[dict[str, Any]] = [
        {"prompt_token_ids": [*BEFORE, *AFTER]},
        {"prompt_token_ids": marked, "multi_modal_data": {"image": make_image()}},
    ]
    model = make_multimodal_model(folder, family)
    return generate(model, prompts, limit_mm_per_prompt={"image": 1, "video": 0})


def judge(folder: Path, name: str, answers: Answers, plan: dict[str, Any]) -> dict[str, Any]:
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
    vision.enable()
    prepare()
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
