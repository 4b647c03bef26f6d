"""The gate gradient is a derivative, and its score finds the head that carries the answer."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.profile.profiles import make_model, make_question
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.gate import gate_gradients, gate_scores, gate_shares
from vllm_headaware.profile.induction import induction_scores
from vllm_headaware.profile.probe import (
    full_attention,
    last_logits,
    native_attention,
    sink_window_attention,
    watch_attention,
)

SINK, WINDOW, LENGTH, ANSWER = 3, 7, 41, 5


def sink_window_mask(length: int, sink: int, window: int) -> torch.Tensor:
    """bool [T, T]: key j visible to query i iff j <= i and (j < sink or j > i - window)."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    return (j <= i) & ((j < sink) | (j > i - window))


def loss_with_gate(model, input_ids: torch.Tensor, gated: int, head: int, alpha: float) -> float:
    """NLL of the answer with one KV head's gate at alpha and all others open; plain definition."""
    visible = sink_window_mask(len(input_ids), SINK, WINDOW)

    def watch(layer, query, key, value, scale):
        full = full_attention(query, key, value, scale)
        if layer == gated:
            group = query.shape[1] // key.shape[1]
            heads = slice(head * group, (head + 1) * group)
            local = full_attention(query, key, value, scale, visible)[:, heads]
            full[:, heads] = alpha * full[:, heads] + (1 - alpha) * local
        return full

    with watch_attention(model, watch), torch.no_grad():
        logits = model(input_ids[None], use_cache=False).logits[0, -ANSWER - 1 : -1]
    return float(cross_entropy(logits, input_ids[-ANSWER:]))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_gradient_is_that_of_finite_differences(family: str) -> None:
    model = make_model(family)
    input_ids = torch.randint(101, (LENGTH,), generator=torch.Generator().manual_seed(7))
    gradients, _ = gate_gradients(model, make_question(input_ids, ANSWER), SINK, WINDOW)
    assert gradients.shape == (3, 2)
    step = 1e-4
    for layer, head in itertools.product(range(3), range(2)):
        losses = [
            loss_with_gate(model, input_ids, layer, head, 1 + sign * step) for sign in (1, -1)
        ]
        expected = (losses[0] - losses[1]) / (2 * step)
        assert abs(expected) > 1e-3, "a gate without effect would show nothing"
        assert float(gradients[layer, head]) == pytest.approx(expected, rel=2e-2, abs=2e-3)


def test_only_layers_of_full_attention_are_scored_and_the_others_keep_their_window() -> None:
    model = make_model("gemma3")
    input_ids = torch.randint(101, (LENGTH,), generator=torch.Generator().manual_seed(7))
    expected = model(input_ids[None]).logits[0, -ANSWER - 1 : -1].float()

    def watch(layer, query, key, value, scale):
        return native_attention(query, key, value, scale, (11, None, 11)[layer])

    with watch_attention(model, watch):
        got = last_logits(model, input_ids, ANSWER)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    gradients, _ = gate_gradients(model, make_question(input_ids, ANSWER), SINK, WINDOW)
    assert gradients[[0, 2]].abs().max() == 0
    assert gradients[1].abs().min() > 1e-4
    windowless = induction_scores(model, 101, 20, torch.Generator().manual_seed(1))
    assert windowless[[0, 2]].abs().max() == 0
    assert windowless[1].min() > 0


def test_models_that_cap_logits_are_not_probed() -> None:
    model, question = make_model("gemma2"), make_question(torch.arange(LENGTH), ANSWER)
    with pytest.raises(HeadAwareError, match="caps its logits"):
        gate_gradients(model, question, SINK, WINDOW)


def test_nothing_is_lost_when_the_window_covers_everything() -> None:
    model = make_model("llama")
    input_ids = torch.randint(101, (LENGTH,), generator=torch.Generator().manual_seed(7))
    question = make_question(input_ids, ANSWER)
    assert gate_gradients(model, question, 0, LENGTH)[0].abs().max() < 1e-6
    assert gate_gradients(model, question, 0, LENGTH - 9)[0].abs().max() > 1e-4


@pytest.mark.parametrize(("sink", "window"), [(3, 5), (0, 1), (64, 300), (700, 9), (1, 2000)])
def test_sinks_and_the_last_window_tokens_are_seen(sink: int, window: int) -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 4, 1300, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, 1300, 8, generator=generator)
    expected = full_attention(query, key, value, 0.3, sink_window_mask(1300, sink, window))
    got = sink_window_attention(query, key, value, 0.3, sink, window)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_model_is_as_before_afterwards_even_after_an_error() -> None:
    model = make_model("llama")
    before = model.config._attn_implementation
    input_ids = torch.arange(LENGTH)
    logits = model(input_ids[None]).logits
    gate_gradients(model, make_question(input_ids, ANSWER), SINK, WINDOW)

    def fail(*_):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), watch_attention(model, fail):
        model(input_ids[None])
    assert model.config._attn_implementation == before
    assert torch.equal(model(input_ids[None]).logits, logits)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_watching_with_full_attention_changes_nothing() -> None:
    model = make_model("qwen2")
    input_ids = torch.arange(LENGTH)
    expected = model(input_ids[None]).logits[0, -ANSWER - 1 : -1].float()

    def watch(layer, query, key, value, scale):
        return full_attention(query, key, value, scale)

    with watch_attention(model, watch):
        got = last_logits(model, input_ids, ANSWER)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_samples_weigh_the_same_and_signs_do_not_cancel() -> None:
    gradients = torch.tensor([[[3.0], [1.0]], [[-300.0], [100.0]], [[0.0], [0.0]]])
    shares = gate_shares(gradients)
    torch.testing.assert_close(shares[:2], torch.tensor([[[0.75], [0.25]]] * 2))
    assert torch.equal(shares[2], torch.zeros(2, 1))
    assert torch.equal(gate_scores(shares[2:], [9]), torch.zeros(2, 1))


def test_samples_weigh_as_they_are_told() -> None:
    shares = torch.tensor([[[0.8, 0.2]], [[0.6, 0.4]], [[0.1, 0.9]]])
    # (.8 + .6 + 2 x .1) / 4
    torch.testing.assert_close(gate_scores(shares, [0.5, 0.5, 1]), torch.tensor([[0.4, 0.6]]))
    torch.testing.assert_close(gate_scores(shares, [7, 7, 7]), shares.mean(0))
