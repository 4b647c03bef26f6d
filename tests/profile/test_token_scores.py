"""Weights that tell which tokens a head will need: learned from a repetition."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.profile.profiles import make_model
from vllm_headaware.kernels.score_size import num_features
from vllm_headaware.kernels.token_scores import features
from vllm_headaware.profile.agreement import spearman
from vllm_headaware.profile.probe import native_attention, watch_attention
from vllm_headaware.profile.token_scores import (
    Sums,
    learn_token_scores,
    repetition_worth,
)
from vllm_headaware.profile.token_weights import pack, unpack


class Letters:
    """A tokenizer of bytes."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [byte % 101 for byte in text.encode()]


def contexts(count: int) -> list[list[int]]:
    return [torch.randint(8, 101, (60,)).tolist() for _ in range(count)]


def test_worth_is_the_most_attention_of_the_repetition() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 6, 50, 16), torch.randn(1, 2, 50, 16)
    worth = repetition_worth(query, key, 20, 0.3)
    assert worth.shape == (2, 20)
    expected = torch.zeros(2, 20)
    for head in range(6):
        for row in range(30, 50):
            weights = (key[0, head // 3, : row + 1] @ query[0, head, row] * 0.3).softmax(0)
            expected[head // 3] = torch.maximum(expected[head // 3], weights[:20])
    assert (worth - expected).abs().max() < 1e-6


def test_sums_give_back_what_made_them() -> None:
    torch.manual_seed(1)
    true, sums = torch.randn(1, 2, 5), Sums((1, 2), 5, "cpu")
    for _ in range(20):
        x = torch.randn(2, 100, 5) * torch.tensor([1.0, 10, 0.1, 3, 1])
        sums.add(0, x, (x * true[0][:, None]).sum(-1) + 7)
    found, exact = sums.solve()[0], true[0] / true[0].norm(dim=-1, keepdim=True)
    assert (found - exact).abs().max() < 0.05


def test_scores_follow_what_is_repeated() -> None:
    """Of contexts that were not learned from, every head ranks tokens as their worth does."""
    torch.manual_seed(2)
    model, tokenizer = make_model("llama").float(), Letters()
    ticks: list[int] = []
    weights = learn_token_scores(model, tokenizer, contexts(60), lambda: ticks.append(1))
    assert weights is not None
    assert (weights.shape, len(ticks)) == ((3, 2, num_features(16)), 60)
    ids, agreement = contexts(1)[0], []

    def watch(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, s: float
    ) -> torch.Tensor:
        if q.shape[2] > 60 and layer == 0:  # there a key is its token's, turned by its position
            worth = repetition_worth(q, k, 60, s)
            plain = plain_keys(model, torch.tensor(ids))
            found = (features(plain, v[0, :, :60]) * weights[0][:, None]).sum(-1)
            agreement.append(spearman(found, worth))
        return native_attention(q, k, v, s, None)

    with watch_attention(model, watch):
        model(torch.tensor([[*ids, *ids]]))
    assert agreement[0] > 0.3


def plain_keys(model: object, ids: torch.Tensor) -> torch.Tensor:
    """Keys of the first layer as they are at position 0, one token at a time."""
    found = []

    def watch(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, s: float
    ) -> torch.Tensor:
        if layer == 0:
            found.append(k[0])
        return native_attention(q, k, v, s, None)

    with watch_attention(model, watch):
        for token in ids:
            model(token[None, None])  # type: ignore[operator]
    return torch.cat(found, 1)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "phi3"])
def test_families_that_rotate_by_halves(family: str) -> None:
    model = make_model(family).float()
    weights = learn_token_scores(model, Letters(), contexts(2))
    assert weights is not None
    assert (weights.norm(dim=-1) - 1).abs().max() < 1e-5


def test_a_model_that_rotates_otherwise_has_none() -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 101}
    config = AutoConfig.for_model("cohere", **sizes, **heads, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert learn_token_scores(model, Letters(), contexts(1)) is None


def test_weights_as_text() -> None:
    weights = torch.randn(3, 2, num_features(16))
    again = unpack(pack(weights), 3, 2, 16)
    assert (again - weights).abs().max() < 2e-3
