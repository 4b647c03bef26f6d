"""What `profile --dry-run` says against what measuring takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig

from testbench.one_side import run_side
from tests.profile.peak import ANSWER
from tests.reference.tiny import TinyShape, make_tiny_model
from vllm_headaware.cli.main import main
from vllm_headaware.profile.estimate import count_parameters, estimate

SHAPES = {
    "deep": TinyShape(12, 8, 4, 64, 512, 2000),
    "wide": TinyShape(3, 12, 4, 64, 768, 30_000),
    "many KV heads": TinyShape(8, 8, 8, 64, 256, 2000),
}
TOKENS = 1000
OF: dict[str, Any] = {
    "samples": 24,
    "lengths": (TOKENS,),
    "answers": 2,
    "answer_lengths": (TOKENS, 2 * TOKENS),
}


@pytest.mark.engine
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_what_was_said(shape: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, SHAPES[shape])
    real = run_side("tests.profile.peak", [str(folder), str(TOKENS)])
    config = AutoConfig.from_pretrained(folder)
    said = estimate(config, count_parameters(folder), **OF)
    assert ANSWER == 64, "as answers are"
    assert real["token_scores"] - real["base"] == pytest.approx(said.peak, rel=0.2), (real, said)


def test_time_and_memory_grow_with_what_is_asked(tiny_model: Path) -> None:
    config, parameters = AutoConfig.from_pretrained(tiny_model), count_parameters(tiny_model)
    assert parameters == sum(
        w.numel() for w in load_file(tiny_model / "model.safetensors").values()
    )
    base = estimate(config, parameters, **OF)
    longer = estimate(config, parameters, **{**OF, "lengths": (4 * TOKENS,)})
    more = estimate(config, parameters, **{**OF, "samples": 48, "answers": 4})
    half = estimate(config, parameters, **OF, element_bytes=2)
    assert longer.questions > 2 * base.questions
    assert more.seconds(1e9, 1e9) == pytest.approx(2 * base.seconds(1e9, 1e9))
    assert more.peak == base.peak
    assert half.weights * 2 == base.weights
    whole = dataclasses.replace(base, weights=0, questions=3, answers=5, token_scores=4)
    assert whole.peak == 5


def test_the_command_line_says_it(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["profile", str(tiny_model), "--dry-run", "--lengths", "700", "--device", "cpu"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak_bytes"] > found["weights_bytes"] == 4 * count_parameters(tiny_model)
    assert found["seconds"] > 0
    assert main([*asked, "--dtype", "bfloat16"]) == 0
    assert "in bfloat16" in capsys.readouterr().out
    assert main([*asked, "--through-engine"]) == 2
    assert "--dry-run is about measuring with gradients" in capsys.readouterr().err
