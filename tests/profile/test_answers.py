"""Gates of the answer's rows: what they show, and that the heads an answer needs stay open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.profile.profiles import make_model, make_question
from tests.profile.test_gate import sink_window_mask
from vllm_headaware.profile.answers import (
    answer_divergence,
    read_prompt,
    train_gates,
)
from vllm_headaware.profile.probe import full_attention, watch_attention

SINK, WINDOW, LENGTH, ANSWER = 3, 7, 41, 5


def make_ids() -> torch.Tensor:
    return torch.randint(101, (LENGTH,), generator=torch.Generator().manual_seed(7))


def choices(model, ids: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """All rows at once, gates at work in the last ANSWER only; plain definition."""
    visible = sink_window_mask(LENGTH - 1, SINK, WINDOW)
    visible[: LENGTH - ANSWER - 1] = torch.ones(LENGTH - 1, LENGTH - 1).tril()[:-ANSWER].bool()

    def watch(layer, query, key, value, scale):
        gate = gates[layer].repeat_interleave(query.shape[1] // key.shape[1])[:, None, None]
        full = full_attention(query, key, value, scale)
        return gate * full + (1 - gate) * full_attention(query, key, value, scale, visible)

    with watch_attention(model, watch), torch.no_grad():
        return model(ids[None, :-1], use_cache=False).logits[0, -ANSWER:].log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gates_close_in_the_answer_and_nowhere_else(family: str, tmp_path: Path) -> None:
    model, ids = make_model(family), make_ids()
    read = read_prompt(model, make_question(ids, ANSWER), tmp_path / "read")
    target = read.load()[1]
    gates = torch.rand(3, 2, generator=torch.Generator().manual_seed(1))
    open_all = choices(model, ids, torch.ones(3, 2))
    torch.testing.assert_close(target, open_all, check_dtype=False)
    expected = torch.nn.functional.kl_div(
        choices(model, ids, gates).float(),
        target.float(),
        reduction="batchmean",
        log_target=True,
    )
    assert expected > 1e-3
    for _ in range(2):  # what is kept of the prompt is not changed
        got = answer_divergence(model, read, gates, SINK, WINDOW)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)
    assert answer_divergence(model, read, torch.ones(3, 2), SINK, WINDOW) < 1e-9


def test_layers_with_a_window_of_their_own_have_no_gate(tmp_path: Path) -> None:
    model, ids = make_model("gemma3"), make_ids()
    read = [read_prompt(model, make_question(ids, ANSWER), tmp_path / "read")]
    closed = torch.tensor([[0.0], [1.0], [0.0]]).expand(-1, 2)
    assert answer_divergence(model, read[0], closed, SINK, WINDOW) < 1e-9
    scores = train_gates(model, read, sink=SINK, window=WINDOW, price=0.1)
    assert scores[[0, 2]].max() == 0
    assert scores[1].max() > 0


def test_heads_that_answers_miss_stay_open_and_the_others_close(tmp_path: Path) -> None:
    """All heads but one are closed alone, to see which one the choices miss most."""
    model, ids = make_model("llama"), make_ids()
    read = read_prompt(model, make_question(ids, ANSWER), tmp_path / "read")
    missed = torch.empty(6)
    for head in range(6):
        gates = torch.ones(6)
        gates[head] = 0
        missed[head] = answer_divergence(model, read, gates.view(3, 2), SINK, WINDOW)
    order = missed.argsort().tolist()
    price = float(missed[order[2]] + missed[order[3]]) / 2
    scores = train_gates(model, [read] * 24, sink=SINK, window=WINDOW, price=price).flatten()
    assert set(scores.argsort()[:2].tolist()) <= set(order[:3])
    assert scores[order[-1]] > 0.9 > 0.5 > scores[order[0]]
