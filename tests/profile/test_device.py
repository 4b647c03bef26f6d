"""Where a model computes, everything that meets its tensors is put; results come back to the CPU.

There is no GPU here. The `meta` device takes its place: it computes nothing, but mixes with the
CPU's tensors as little as a GPU does. Its values are read as zeros.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.profile.profiles import make_model, make_question
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.ablation import answer_loss
from vllm_headaware.profile.copying import CopyWatch
from vllm_headaware.profile.gate import gate_gradients
from vllm_headaware.profile.induction import induction_scores
from vllm_headaware.profile.run import load_model

SINK, WINDOW, ANSWER = 3, 7, 5
CPU = torch.device("cpu")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A decoder elsewhere, with windows of its own in some layers."""

    def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")

    monkeypatch.setattr(torch.Tensor, "cpu", to_cpu)
    return make_model("gemma3").to("meta")


def test_every_score_is_measured_where_the_model_is(model) -> None:
    question = make_question(torch.arange(47) % 9, ANSWER, (6, 7, 8))
    watch = CopyWatch(model, question)
    gradients, logits = gate_gradients(model, question, SINK, WINDOW, watch.saw)
    assert gradients.device == logits.device == CPU
    watch.scores(logits)
    closed = torch.zeros_like(gradients, dtype=torch.bool)
    closed[:, 0] = True
    assert answer_loss(model, question, closed, SINK, WINDOW) == 0.0
    scores = induction_scores(model, 9, 11, torch.Generator().manual_seed(0))
    assert scores.device == CPU


def test_a_device_that_is_not_there_is_refused(tiny_model: Path) -> None:
    for device in ("cuda:9", "gpu"):
        with pytest.raises(HeadAwareError, match=f"device '{device}': .*use --device cpu"):
            load_model(tiny_model, device)
