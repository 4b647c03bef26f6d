"""Copy and induction scores on a model whose attention is made by hand, so the answer is known.

One layer has 4 query heads over 2 KV heads. Only one query head looks back at what is about to be
written; the others look at the token itself. A classifier that is turned round, or that gives a
query head's score to the wrong KV head, fails.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from tests.profile.profiles import make_question
from vllm_headaware.profile.copying import CopyWatch
from vllm_headaware.profile.induction import induction_scores
from vllm_headaware.profile.probe import (
    last_logits,
    max_over_group,
    row_attention,
    watch_attention,
)

VOCAB, LENGTH = 64, 23


class LookUpModel:
    """One attention layer with hand-made queries and keys; logits follow query head `good`.

    Keys are one-hot in the position. Query head `good` at position i points at the position that
    follows the last earlier occurrence of the token at i; all others point at position i.
    """

    device = torch.device("cpu")

    def __init__(self, good: int = 3) -> None:
        self.config = SimpleNamespace(_attn_implementation="none")
        self.good = good

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: Any) -> Any:
        ids = input_ids[0].tolist()
        size = len(ids)
        key = torch.eye(size).expand(1, 2, size, size)
        query = torch.eye(size).repeat(1, 4, 1, 1)
        follower = list(range(size))
        for i, token in enumerate(ids):
            earlier = [j for j in range(i) if ids[j] == token]
            follower[i] = earlier[-1] + 1 if earlier else i
        query[0, self.good] = torch.eye(size)[follower]
        attend = AttentionInterface()[self.config._attn_implementation]
        attend(SimpleNamespace(layer_idx=0), query, key, key.clone(), None, scaling=50.0)
        logits = torch.eye(VOCAB)[input_ids[:, follower] % VOCAB]
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def copy_scores(
    model: Any, ids: torch.Tensor, needle: list[int], num_answer_tokens: int
) -> torch.Tensor | None:
    watch = CopyWatch(model, make_question(ids, num_answer_tokens, tuple(needle)))

    def attend(layer, query, key, value, scale):
        watch.saw(layer, query, key, scale)
        return query

    with watch_attention(model, attend):
        return watch.scores(last_logits(model, ids, num_answer_tokens))


def needle_ids() -> tuple[torch.Tensor, list[int]]:
    """Filler 0..., then 40 + needle 41 42 43, filler, and the answer 40 41 42 43 at the end."""
    needle = [41, 42, 43]
    prompt = [*range(9), 40, *needle, *range(9, 20)]
    return torch.tensor([*prompt, 40, *needle]), needle


@pytest.mark.parametrize("good", [0, 1, 2, 3])
def test_only_the_head_that_copies_scores(good: int) -> None:
    ids, needle = needle_ids()
    scores = copy_scores(LookUpModel(good), ids, needle, 4)
    assert scores is not None
    expected = torch.zeros(1, 2)
    expected[0, good // 2] = 1.0
    torch.testing.assert_close(scores, expected)


def test_samples_that_are_not_answered_do_not_count() -> None:
    ids, needle = needle_ids()
    wrong = ids.clone()
    wrong[10] = 50  # the prompt says 50 42 43: the model writes that, not the needle
    assert copy_scores(LookUpModel(), wrong, needle, 4) is None
    assert copy_scores(LookUpModel(), ids, [41, 42, 44], 4) is None
    # The needle is in the prompt and the answer, but another token comes between in the model.
    unsure = torch.tensor([*ids[:-4].tolist(), 40, 60, *ids[-4:].tolist()])
    assert copy_scores(LookUpModel(), unsure, needle, 4) is None
    assert copy_scores(LookUpModel(), ids, [], 4) is None, "a question without a needle"


@pytest.mark.parametrize("good", [0, 3])
def test_induction_finds_the_head_that_looks_after_the_first_occurrence(good: int) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = induction_scores(LookUpModel(good), 10**9, LENGTH, generator)
    expected = torch.zeros(1, 2)
    expected[0, good // 2] = 1.0
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_row_attention_is_causal_and_sums_to_one() -> None:
    query, key = torch.randn(1, 6, 13, 8), torch.randn(1, 2, 13, 8)
    rows = torch.tensor([0, 5, 12])
    attention = row_attention(query, key, rows, 0.3)
    torch.testing.assert_close(attention.sum(-1), torch.ones(6, 3))
    for index, row in enumerate(rows.tolist()):
        assert (attention[:, index, row + 1 :] == 0).all()
    by_hand = (query[0, 4, 5] @ key[0, 1, :6].T * 0.3).softmax(-1)
    torch.testing.assert_close(attention[4, 1, :6], by_hand)


def test_a_kv_head_is_worth_its_best_query_head() -> None:
    best = max_over_group(torch.tensor([0.1, 0.7, 0.2, 0.3, 0.0, 0.4]), 2)
    torch.testing.assert_close(best, torch.tensor([0.7, 0.4]))
