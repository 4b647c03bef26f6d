"""Quantised weights: attention does not care, and the parent's profile serves."""

from pathlib import Path

import pytest
import torch

from testbench.hf_reference import HFReference, rules_of
from testbench.quantised import EXACT, SATURATES, make_quantised, quantise_like
from testbench.small_requests import POLICY, make_prompts
from tests.engine.scenario import run_scenario
from vllm_headaware.plan.plan_json import plan_from_dict
from vllm_headaware.profile.locate import FILE_NAME

pytestmark = pytest.mark.engine


@pytest.mark.skipif(not EXACT, reason=SATURATES)
def test_quantised_weights(model: Path, tmp_path: Path) -> None:
    child = make_quantised(model, tmp_path / "child")
    prompts = make_prompts(211, (60, 200, 333, 450))
    report = run_scenario(
        child,
        rounds=[prompts, prompts],
        engine={
            **POLICY,
            "kv_head_profile": str(model / FILE_NAME),
            "max_num_batched_tokens": 100,
            "max_num_seqs": 4,
        },
    )
    assert (report["faults"], report["held_at_end"]) == ([], 0)
    # Rounding activations makes small differences large, so a token may be the second choice; it is
    # none by far, as it would be under another rule.
    reference = HFReference(model, rules_of(plan_from_dict(report["plan"])))
    answers = [(p, report["tokens"][f"{r}/{i}"]) for r in range(2) for i, p in enumerate(prompts)]

    def mean_lag() -> float:
        return float(torch.stack([reference.lags(*both) for both in answers]).mean())

    other_weights = mean_lag()
    quantise_like(reference.model)
    right = mean_lag()
    reference.rules = HFReference(model).rules
    other_rule = mean_lag()
    assert right < min(0.004, other_weights / 2), (right, other_weights)
    assert other_rule > 100 * right, (right, other_rule)
