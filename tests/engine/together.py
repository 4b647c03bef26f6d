"""One engine with everything on that works together with --kv-policy, in processes of its own.

Async scheduling, prefix caching, chunked prefill and a LoRA adapter; then n > 1, guided decoding
and beam search on it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.engine.child import report, run_child

RANK = 4
BEAM_WIDTH, BEAM_TOKENS = 2, 5


def run_together(model: Path, adapter: Path, prompts: list[list[int]], engine: Any) -> Any:
    """What main() reports; see run_child."""
    return run_child("tests.engine.together", [str(model), str(adapter), prompts, engine])


def make_adapter(model: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Write a random LoRA adapter for the value and output projections of a Llama model.

    Returns:
        What it adds to the weights, by their names in the model.
    """
    config = json.loads((model / "config.json").read_text())
    hidden, size = config["hidden_size"], config["head_dim"]
    shapes = {
        "v_proj": (size * config["num_key_value_heads"], hidden),
        "o_proj": (hidden, size * config["num_attention_heads"]),
    }
    generator = torch.Generator().manual_seed(11)
    tensors, added = {}, {}
    for layer in range(config["num_hidden_layers"]):
        for name, (rows, columns) in shapes.items():
            a = torch.randn(RANK, columns, generator=generator) * columns**-0.5
            b = torch.randn(rows, RANK, generator=generator) * 0.7
            path = f"model.layers.{layer}.self_attn.{name}"
            tensors[f"base_model.model.{path}.lora_A.weight"] = a
            tensors[f"base_model.model.{path}.lora_B.weight"] = b
            added[f"{path}.weight"] = b @ a
    folder.mkdir()
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    values = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(shapes),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return added


def main() -> None:
    """Generate in every way and print."""
    model, adapter, prompts, engine = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

    from vllm_headaware.plan.plan_json import plan_to_dict
    from vllm_headaware.vllm_compat.carrier import get_plan

    llm = LLM(
        model,
        dtype="float32",
        max_model_len=1024,
        enable_lora=True,
        max_lora_rank=8,
        async_scheduling=True,
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        max_num_batched_tokens=100,
        **engine,
    )
    tokens: Any = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]

    def generate(lora: Any = None, **params: Any) -> list[list[list[int]]]:
        settings = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, **params}
        outputs = llm.generate(
            tokens, SamplingParams(**settings), use_tqdm=False, lora_request=lora
        )
        return [[list(o.token_ids) for o in output.outputs] for output in outputs]

    choices = ["w20", "w35"]  # no other word is the beginning of one
    guided = StructuredOutputsParams(choice=choices)
    beams = llm.beam_search(
        tokens, BeamSearchParams(beam_width=BEAM_WIDTH, max_tokens=BEAM_TOKENS, ignore_eos=True)
    )
    plan = get_plan(llm.llm_engine.vllm_config)
    report(
        {
            "plain": generate(),
            "siblings": generate(n=3, temperature=1.0, top_k=1),
            "lora": generate(LoRARequest("adapter", 1, adapter)),
            "guided": generate(structured_outputs=guided, ignore_eos=False),
            "beams": [[b.tokens for b in output.sequences] for output in beams],
            "plan": plan_to_dict(plan) if plan else None,
            "choices": choices,
        }
    )


if __name__ == "__main__":
    main()
