"""Two ranks with uneven head counts give the tokens of one."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import POLICY
from tests.engine.ranks import generate_on_ranks
from tests.engine.test_invariants import rules_of
from tests.reference.hf import HFReference
from vllm_headaware.plan import Plan

pytestmark = pytest.mark.engine


def test_two_ranks_follow_the_rule(model: Path, prompts: list[list[int]]) -> None:
    some = prompts[::4]
    report: Any = generate_on_ranks(model, some, {**POLICY, "tensor_parallel_size": 2})
    plan = Plan.from_dict(report["plan"])
    assert plan.tensor_parallel_size == 2
    counts = [[plan.num_heads(i, rank) for i in range(len(plan.classes))] for rank in range(2)]
    assert counts[0] != counts[1], "the ranks should hold different head counts"
    reference = HFReference(model, rules_of(plan))
    assert report["tokens"] == [reference.greedy(prompt, 12) for prompt in some]
