"""The profiles that come with the package: found by the model's hash, and like one measured now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vllm_headaware.cli.main import main
from vllm_headaware.profile.agreement import spearman
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.locate import FILE_NAME, SHIPPED, find_profile, shipped_place
from vllm_headaware.profile.model_hash import model_hash

LEAST = {"gate": 0.8, "answer": 0.8, "copy": 0.75, "induction": 0.98}
MEASURED = Path(__file__).parents[2] / ".cache" / "measured" / FILE_NAME


def test_every_shipped_profile_is_named_by_its_model() -> None:
    paths = list(SHIPPED.glob("*.json"))
    assert paths
    for path in paths:
        assert shipped_place(HeadProfile.load(path).model.hash) == path


def test_the_demo_model_has_one(demo_model: Path, tmp_path: Path) -> None:
    """A folder with the model alone: nothing is measured."""
    for path in demo_model.iterdir():
        if path.name != FILE_NAME:
            (tmp_path / path.name).symlink_to(path)
    place = shipped_place(model_hash(demo_model))
    assert find_profile(tmp_path) == HeadProfile.load(place)


@pytest.mark.slow
def test_a_quick_profile_agrees(demo_model: Path) -> None:
    """Six questions and short prompts instead of 24 and long ones; measured once in a checkout."""
    if not MEASURED.exists():
        MEASURED.parent.mkdir(parents=True, exist_ok=True)
        asked = [str(demo_model), "--samples", "6", "--lengths", "1000"]
        assert main(["profile", *asked, "--output", str(MEASURED)]) == 0
    shipped = HeadProfile.load(shipped_place(model_hash(demo_model)))
    measured = HeadProfile.load(MEASURED)
    assert measured.model.hash == shipped.model.hash
    for name, scores in shipped.scores.items():
        again = torch.tensor(measured.scores[name])
        assert spearman(torch.tensor(scores), again) > LEAST[name], name
