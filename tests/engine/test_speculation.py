"""Speculative decoding with n-gram drafts: the same tokens in fewer steps, and nothing given back
for tokens that were rejected."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from testbench.random_profile import write_profile
from testbench.small_requests import DRAFTS, POLICY, make_prompts
from tests.engine.scenario import run_scenario
from tests.engine.test_budgets import expect_reference

pytestmark = pytest.mark.engine

TOKENS = 90
"""Of an answer: enough for windows to leave blocks behind."""


@pytest.fixture(scope="module")
def forgetful(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with attention that weighs little: what it says soon goes in circles, so that
    drafts are often right."""
    folder = tmp_path_factory.mktemp("forgetful")
    shutil.copytree(model, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "o_proj" in name:
            weight *= 0.04
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_profile(folder)
    return folder


@pytest.mark.parametrize("which", ["model", "forgetful"])
def test_drafts_change_no_token(which: str, request: pytest.FixtureRequest) -> None:
    """Two rounds, so that the second hits the prefixes of the first; all are put back midway."""
    folder: Path = request.getfixturevalue(which)
    prompts = make_prompts(211, (80, 194, 256, 400, 620))
    engine: dict[str, Any] = {**POLICY, "max_num_batched_tokens": 100, "max_num_seqs": 5}
    asked: dict[str, Any] = {"rounds": [prompts] * 2, "max_tokens": TOKENS}
    plain = run_scenario(folder, engine=engine, **asked)
    drafted = run_scenario(
        folder, engine={**engine, "speculative_config": DRAFTS}, preempt_at=[25], **asked
    )
    assert (drafted["faults"], drafted["held_at_end"]) == ([], 0)
    assert drafted["preemptions"] > 0
    for round_ in range(2):
        expect_reference(folder, drafted, prompts, round_)
    assert min(drafted["cached"][f"1/{index}"] for index in range(1, 5)) > 0
    assert drafted["tokens"] == plain["tokens"]
    if which == "forgetful":
        assert sum(drafted["steps"]) < sum(plain["steps"]), "drafts were accepted"
