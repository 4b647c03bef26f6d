"""Every supported architecture is served with uneven head classes, and follows the reference."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from testbench.hf_reference import HFReference, rules_of
from tests.engine.conftest import POLICY, make_prompts
from tests.engine.profiles import write_profile
from tests.engine.scenario import run_scenario
from vllm_headaware.plan.plan_json import plan_from_dict
from vllm_headaware.vllm_compat.front_end.conflicts import ARCHITECTURES

pytestmark = pytest.mark.engine

FAMILIES: dict[str, dict[str, Any]] = {
    "MistralForCausalLM": {"model_type": "mistral", "sliding_window": None},
    "Phi3ForCausalLM": {"model_type": "phi3", "pad_token_id": 2, "sliding_window": None},
    "Qwen2ForCausalLM": {"model_type": "qwen2"},
    "Qwen3ForCausalLM": {"model_type": "qwen3"},
}


def test_every_architecture_is_served_here() -> None:
    assert {"LlamaForCausalLM", *FAMILIES} == set(ARCHITECTURES)


def make_family_model(folder: Path, like: Path, options: dict[str, Any]) -> Path:
    """A random model of another family with the sizes and tokenizer of the tiny Llama."""
    sizes = json.loads((like / "config.json").read_text())
    keys = (
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
    )
    shape = {key: sizes[key] for key in keys}
    # Phi-3 and Qwen2 derive the head size from the hidden size.
    shape = {**shape, **options}
    shape["hidden_size"] = shape["head_dim"] * shape["num_attention_heads"]
    config = AutoConfig.for_model(**shape, tie_word_embeddings=False)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                gain = 1.0 if "embed" in name else 1.6 * weight.shape[1] ** -0.5
                weight.normal_(0.0, gain)
    model.save_pretrained(folder)
    for path in like.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("architecture", FAMILIES)
def test_output_is_the_reference(tmp_path: Path, tiny_model: Path, architecture: str) -> None:
    model = make_family_model(tmp_path, tiny_model, FAMILIES[architecture])
    assert json.loads((model / "config.json").read_text())["architectures"] == [architecture]
    write_profile(model)
    prompts = make_prompts(211, (5, 97, 333))
    engine = {**POLICY, "max_num_batched_tokens": 128, "max_num_seqs": 3}
    report = run_scenario(model, rounds=[prompts], engine=engine)
    assert report["faults"] == []
    reference = HFReference(model, rules_of(plan_from_dict(report["plan"])))
    for index, prompt in enumerate(prompts):
        assert report["tokens"][f"0/{index}"] == reference.greedy(prompt, 12)
