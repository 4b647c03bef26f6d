"""Closing heads costs what it costs one by one, and the fewest open heads are found."""

from __future__ import annotations

import pytest
import torch

from tests.profile.profiles import make_model, make_question
from tests.profile.test_gate import ANSWER, LENGTH, SINK, WINDOW, loss_with_gate
from vllm_headaware.policies.headaware import rank_heads
from vllm_headaware.profile.ablation import SHARES, ablate, answer_loss, fewest_within
from vllm_headaware.profile.questions import Question


def make_sample(seed: int) -> Question:
    generator = torch.Generator().manual_seed(seed)
    return make_question(torch.randint(101, (LENGTH,), generator=generator), ANSWER)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_a_closed_head_costs_what_a_gate_at_zero_costs(family: str) -> None:
    model, sample = make_model(family), make_sample(7)
    everything = torch.zeros(3, 2, dtype=torch.bool)
    open_loss = answer_loss(model, sample, everything, SINK, WINDOW)
    for at in ((0, 1), (2, 0)):
        closed = everything.clone()
        closed[at] = True
        loss = answer_loss(model, sample, closed, SINK, WINDOW)
        expected = loss_with_gate(model, sample.input_ids, *at, 0.0)
        assert loss == pytest.approx(expected, abs=1e-5)
        assert abs(loss - open_loss) > 1e-4, "the test shows nothing if the head has no effect"


def test_layers_with_a_window_of_their_own_stay() -> None:
    model, sample = make_model("gemma3"), make_sample(7)
    layers = model.config.num_hidden_layers
    closed = torch.ones(layers, model.config.num_key_value_heads, dtype=torch.bool)
    full = [kind == "full_attention" for kind in model.config.layer_types]
    only = closed & torch.tensor(full)[:, None]
    losses = [answer_loss(model, sample, c, SINK, WINDOW) for c in (closed, only)]
    assert losses[0] == losses[1] != answer_loss(model, sample, ~closed, SINK, WINDOW)


def test_shares_count_the_heads_that_a_policy_is_about() -> None:
    model = make_model("gemma3")
    scores = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.0, 0.0]])  # full attention in the middle only
    found = ablate(model, [make_sample(1)], scores, SINK, WINDOW, -1e9)
    assert [share for share, _ in found["curve"]] == [0.0, 0.5, 1.0]


def test_heads_are_closed_from_the_lowest_rank_on_until_the_bound() -> None:
    model, samples = make_model("llama"), [make_sample(1), make_sample(2)]
    scores = torch.tensor([[0.1, 0.5], [0.3, 0.0], [0.2, 0.4]])
    ticks: list[None] = []
    found = ablate(model, samples, scores, SINK, WINDOW, 1e9, lambda: ticks.append(None))
    assert (found["share"], found["samples"], found["bound"]) == (0, 2, 1e9)
    ranks = torch.tensor(rank_heads(scores.tolist()))
    for share, loss in found["curve"]:
        closed = ranks >= round(share * 6)
        none = torch.zeros_like(closed)
        expected = sum(
            answer_loss(model, sample, closed, SINK, WINDOW)
            - answer_loss(model, sample, none, SINK, WINDOW)
            for sample in samples
        )
        assert loss == pytest.approx(expected / 2, rel=1e-3, abs=1e-5)
    shares = {round(round(share * 6) / 6, 4) for share in SHARES}
    assert [share for share, _ in found["curve"]] == sorted(shares | {1.0})
    assert len(ticks) == len(found["curve"])
    assert ablate(model, samples, scores, SINK, WINDOW, -1e9)["share"] == 1


@pytest.mark.parametrize("fewest", [0, 1, 9, 10, 11, 33, 45, 46, 90])
def test_the_fewest_heads_within_a_bound_are_found(fewest: int) -> None:
    asked: list[int] = []

    def within(count: int) -> bool:
        asked.append(count)
        return count >= fewest

    assert fewest_within(within, [0, 9, 18, 32, 45], 90) == fewest
    assert len(asked) <= 11


def test_a_loss_that_returns_counts() -> None:
    """Where fewer open heads are good by chance, the answer is above the last bad count."""
    bad = {0, 5, 20}
    assert fewest_within(lambda n: n not in bad, [0, 5, 10, 20, 30], 40) == 21
