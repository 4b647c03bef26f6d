"""A profile with uneven heads, and reports of engines that several tests look at."""

from pathlib import Path
from typing import Any

import pytest

from testbench.random_profile import write_profile
from testbench.small_requests import POLICY, make_prompts
from tests.engine.scenario import run_scenario


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> Path:
    """The tiny model with a profile next to it that gives layers different head counts."""
    write_profile(tiny_model)
    return tiny_model


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return make_prompts(211)


@pytest.fixture(scope="session")
def stock(model: Path, prompts: list[list[int]]) -> Any:
    """vLLM with the plugin installed and no flag, all prompts at once."""
    return run_scenario(model, rounds=[prompts])


@pytest.fixture(scope="session")
def together(model: Path, prompts: list[list[int]]) -> Any:
    """The policy on, all prompts at once, in chunks of at most 100 tokens a step."""
    engine = {**POLICY, "max_num_batched_tokens": 100, "max_num_seqs": 17}
    return run_scenario(model, rounds=[prompts], engine=engine)
