"""Prompts, a profile with uneven heads, and reports of engines that several tests look at."""

import random
from pathlib import Path
from typing import Any

import pytest

from testbench.random_profile import write_profile
from tests.engine.scenario import run_scenario

POLICY: dict[str, Any] = {
    "kv_policy": "headaware",
    "kv_retrieval_share": 0.3,
    "kv_induction_share": 0.2,
    "kv_sink": 20,
    "kv_window": 40,
    "kv_induction_window": 130,
    "kv_retrieval_dtype": "float32",
    "kv_induction_dtype": "float32",
    "kv_local_dtype": "float32",
}
"""Unquantised, so that tokens can be compared with stock vLLM and Hugging Face exactly."""
LENGTHS = (1, 7, 31, 32, 33, 59, 60, 61, 97, 128, 161, 200, 255, 310, 333, 401, 450)


def make_prompts(vocab_size: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    """Random prompts of awkward lengths; the first are shorter than sinks + window."""
    rng = random.Random(17)
    return [[rng.randrange(8, vocab_size) for _ in range(length)] for length in lengths]


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
