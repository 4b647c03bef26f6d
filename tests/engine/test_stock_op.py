"""Where the native kernels cannot serve a model, unquantised classes run on vLLM's own op."""

from pathlib import Path

import pytest

from testbench.families import make_family_model
from testbench.hf_reference import HFReference, rules_of
from testbench.random_profile import write_profile
from testbench.small_requests import POLICY, make_prompts
from tests.engine.scenario import run_scenario
from vllm_headaware.kernels.cpu.support import why_not_native
from vllm_headaware.plan.plan_json import plan_from_dict

pytestmark = pytest.mark.engine

HEAD_SIZE = 80
"""Not a multiple of 32."""


@pytest.fixture
def odd_model(tmp_path: Path, tiny_model: Path) -> Path:
    model = make_family_model(tmp_path, {"model_type": "llama", "head_dim": HEAD_SIZE}, tiny_model)
    write_profile(model)
    return model


def test_output_is_the_reference(odd_model: Path) -> None:
    assert why_not_native(HEAD_SIZE, 3)
    prompts = make_prompts(211, (5, 97, 333))
    engine = {**POLICY, "max_num_batched_tokens": 128, "max_num_seqs": 3}
    report = run_scenario(odd_model, rounds=[prompts], engine=engine)
    assert report["faults"] == []
    reference = HFReference(odd_model, rules_of(plan_from_dict(report["plan"])))
    for index, prompt in enumerate(prompts):
        assert report["tokens"][f"0/{index}"] == reference.greedy(prompt, 12)


def test_auto_is_the_models_dtype_and_int8_is_refused(odd_model: Path) -> None:
    shares = {"kv_policy": "headaware"}
    report = run_scenario(odd_model, rounds=[[[5, 6, 7]]], engine=shares)
    assert {c["dtype"] for c in report["plan"]["classes"]} == {"float32"}
    with pytest.raises(AssertionError, match="int8 needs the native CPU kernels, but they take"):
        run_scenario(odd_model, rounds=[], engine={**shares, "kv_retrieval_dtype": "int8"})
