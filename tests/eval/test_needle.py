"""Needle prompts: as long as asked, answered by the needle alone, not seen in calibration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.eval.tokenizer import WordTokenizer
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.tasks.needle import NeedleSample, needle_samples, score_answer
from vllm_headaware.tasks.words import POOLS

SPLITS = ("calibration", "evaluation")


@pytest.mark.parametrize("tokens", [97, 500, 2000])
@pytest.mark.parametrize("split", SPLITS)
def test_length_is_just_below_what_was_asked(split: str, tokens: int) -> None:
    for sample in needle_samples(WordTokenizer(), split=split, count=17, tokens=tokens, seed=1):
        assert tokens - 16 < len(sample.prompt_token_ids) <= tokens


def test_the_answer_stands_once_at_the_depth_it_says() -> None:
    samples = needle_samples(WordTokenizer(), split="evaluation", count=40, tokens=800, seed=2)
    for sample in samples:
        assert sample.prompt_text.count(sample.answer) == 1
        where = sample.prompt_text.index(sample.answer) / len(sample.prompt_text)
        assert where == pytest.approx(sample.depth, abs=0.1)
        assert sample.reply in sample.prompt_text
        key = re.findall(r"number of (\w+)", sample.prompt_text)
        assert len(set(key)) == 1, "asked for another key than the needle's"
        assert score_answer(sample, sample.reply) == 1.0
    assert min(s.depth for s in samples) < 0.2
    assert max(s.depth for s in samples) > 0.8
    assert len({s.answer for s in samples}) == 40


def test_filler_is_varied() -> None:
    sample = needle_samples(WordTokenizer(), split="evaluation", count=1, tokens=2000)[0]
    sentences = sample.prompt_text.split(". ")
    assert len(sentences) > 100
    assert len(set(sentences)) > 0.9 * len(sentences)


def test_score_wants_this_number() -> None:
    sample = NeedleSample([1], "text", "12345", "The number is 12345.", 0.5)
    assert score_answer(sample, "It is 12345!") == 1.0
    assert score_answer(sample, "It is 12346.") == 0.0
    assert score_answer(sample, "It is 1 2345.") == 0.0
    assert score_answer(sample, "It is 9123456.") == 0.0
    assert score_answer(sample, "") == 0.0


def test_same_seed_same_prompts_other_seed_others() -> None:
    def make(seed: int, tokens: int = 300) -> list[NeedleSample]:
        return needle_samples(
            WordTokenizer(), split="evaluation", count=3, tokens=tokens, seed=seed
        )

    assert make(5) == make(5)
    assert {s.prompt_text for s in make(5)}.isdisjoint(s.prompt_text for s in make(6))
    assert {s.answer for s in make(5)}.isdisjoint(s.answer for s in make(5, 301))


@pytest.mark.parametrize(
    "field", ["keys", "people", "actions", "things", "places", "nouns", "letters", "syllables"]
)
def test_the_splits_share_no_word_pool(field: str) -> None:
    pools = [{entry.lower() for entry in getattr(POOLS[split], field)} for split in SPLITS]
    assert all(len(pool) >= 8 for pool in pools)
    assert pools[0].isdisjoint(pools[1])


def test_the_splits_share_no_number() -> None:
    assert {POOLS[split].residue for split in SPLITS} == {0, 1}
    for split in SPLITS:
        samples = needle_samples(WordTokenizer(), split=split, count=50, tokens=120, seed=3)
        assert {int(s.answer) % 2 for s in samples} == {POOLS[split].residue}


def test_no_sentence_of_one_split_occurs_in_the_other() -> None:
    seen = []
    for split in SPLITS:
        samples = needle_samples(WordTokenizer(), split=split, count=20, tokens=900, seed=4)
        bodies = [sample.prompt_text.split("\n\n")[1] for sample in samples]
        seen.append({sentence for body in bodies for sentence in body.split(". ")})
    assert min(len(sentences) for sentences in seen) > 500
    assert seen[0].isdisjoint(seen[1])


def test_refuses_unknown_splits_and_prompts_that_cannot_fit() -> None:
    with pytest.raises(HeadAwareError, match="calibration, evaluation, got 'test'"):
        needle_samples(WordTokenizer(), split="test", count=1, tokens=500)
    with pytest.raises(HeadAwareError, match="does not fit in 20 tokens"):
        needle_samples(WordTokenizer(), split="evaluation", count=1, tokens=20)


def test_on_the_demo_tokenizer(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    for sample in needle_samples(tokenizer, split="evaluation", count=3, tokens=1000):
        assert 980 < len(sample.prompt_token_ids) <= 1000
        text = str(tokenizer.decode(sample.prompt_token_ids))
        assert sample.prompt_text in text
        assert text.rstrip().endswith("assistant")
