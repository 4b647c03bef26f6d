"""Without a press the harness for kvpress is an ordinary model; kvpress itself runs elsewhere."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from testbench.hf_reference import HFReference
from tools.kvpress_baselines import answer


def test_nothing_compressed_is_the_models_own_answer(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    prompt = torch.randint(101, (41,), generator=torch.Generator().manual_seed(3)).tolist()
    expected = HFReference(tiny_model).greedy(prompt, 7)
    assert answer(model, None, prompt, 7) == expected
    model.generation_config.eos_token_id = expected[3]
    assert answer(model, None, prompt, 7) == expected[: expected.index(expected[3])]
