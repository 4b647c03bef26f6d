"""Rank correlations against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from vllm_headaware.profile.agreement import spearman, split_half


def test_monotone_is_one_and_reversed_is_minus_one() -> None:
    scores = torch.tensor([[0.1, 3.0], [0.2, 0.7], [9.0, 0.5]])
    assert spearman(scores, scores.exp()) == pytest.approx(1.0)
    assert spearman(scores, -scores) == pytest.approx(-1.0)


def test_ties_share_their_mean_rank() -> None:
    # Ranks 1.5 1.5 3 4 against 1 2 3 4: covariance 4.5, variances 4.5 and 5.
    first, second = torch.tensor([1.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(first, second) == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)
    assert spearman(first.flip(0), second) == pytest.approx(-4.5 / (4.5 * 5.0) ** 0.5)


def test_constant_scores_agree_with_nothing() -> None:
    assert spearman(torch.zeros(3, 2), torch.rand(3, 2)) == 0.0


def test_neighbours_go_to_different_halves_by_lot() -> None:
    halves: list[set[int]] = []

    def score(part: list[int]) -> torch.Tensor:
        halves.append(set(part))
        return torch.arange(6.0)

    assert split_half(score, 7) == pytest.approx(1.0)
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        assert first | second == {0, 1, 2, 3, 4, 5}
        assert all(len(first & {i, i + 1}) == len(second & {i, i + 1}) == 1 for i in (0, 2, 4))
    assert {frozenset(half) for half in halves[::2]} == {
        frozenset((a, b, c)) for a in (0, 1) for b in (2, 3) for c in (4, 5)
    }


def test_split_half_is_the_mean_of_what_the_halves_agree() -> None:
    up = torch.arange(6.0).view(3, 2)
    opposed = torch.stack([up, -up])
    assert split_half(lambda part: opposed[part].mean(0), 2) == pytest.approx(-1.0)
    assert split_half(lambda part: opposed[part].mean(0), 1) == 0.0
    # Of two pairs, equal signs meet (a half is constant, which agrees with nothing) or oppose.
    samples = torch.stack([up, -up, up, -up])
    assert -0.8 < split_half(lambda part: samples[part].mean(0), 4) < -0.2
