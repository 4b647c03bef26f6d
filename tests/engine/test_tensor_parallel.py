"""Two ranks with uneven head counts give the tokens of the reference."""

from pathlib import Path
from typing import Any

import pytest

from testbench.hf_reference import HFReference, rules_of
from testbench.random_profile import make_profile
from testbench.small_requests import POLICY
from tests.engine.ranks import generate_on_ranks
from vllm_headaware.plan.plan_json import plan_from_dict

pytestmark = pytest.mark.engine

UNEVEN_SEED = 16
"""A profile in which layers hold a class on both ranks, with different head counts."""


def test_two_ranks_follow_the_rule(model: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    make_profile(model, UNEVEN_SEED).save(path)
    some = prompts[::4]
    engine = {**POLICY, "kv_head_profile": str(path), "tensor_parallel_size": 2}
    report: Any = generate_on_ranks(model, some, engine)
    plan = plan_from_dict(report["plan"])
    assert plan.tensor_parallel_size == 2
    dealt = [[[len(own) for own in plan.heads(y, rank)] for rank in range(2)] for y in range(4)]
    uneven = [
        y
        for y, (a, b) in enumerate(dealt)
        if any(m != n and m and n for m, n in zip(a, b, strict=True))
    ]
    assert len(uneven) > 1, "layers should hold a class on both ranks, with different head counts"
    reference = HFReference(model, rules_of(plan))
    assert report["tokens"] == [reference.greedy(prompt, 12) for prompt in some]
