"""Generated tasks: as long as asked, answerable from the prompt alone, not seen in calibration."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.eval.tokenizer import WordTokenizer
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.tasks.samples import TASKS, Sample, make_samples, score
from vllm_headaware.tasks.words import POOLS

SPLITS = ("calibration", "evaluation")


def make(task: str, split: str = "evaluation", count: int = 17, tokens: int = 700) -> list[Sample]:
    return make_samples(WordTokenizer(), task, split=split, count=count, tokens=tokens, seed=3)


@pytest.mark.parametrize("tokens", [197, 1000])
@pytest.mark.parametrize("task", TASKS)
def test_length_is_just_below_what_was_asked(task: str, tokens: int) -> None:
    for sample in make(task, tokens=tokens):
        assert tokens - 16 < len(sample.prompt_token_ids) <= tokens


@pytest.mark.parametrize("task", TASKS)
def test_the_right_reply_scores_one_and_the_prompt_contains_the_answers(task: str) -> None:
    for sample in make(task):
        assert score(sample, sample.reply) == 1.0
        assert score(sample, "I do not know.") == 0.0
        assert score(sample, sample.prompt_text) == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_prompts_other_lengths_others(task: str) -> None:
    assert make(task) == make(task)
    assert {s.prompt_text for s in make(task)}.isdisjoint(
        s.prompt_text for s in make(task, tokens=701)
    )


@pytest.mark.parametrize("task", TASKS)
def test_calibration_and_evaluation_share_no_content(task: str) -> None:
    """No answer, number, name or sentence of one split occurs in the other."""
    bodies = [
        [s.prompt_text.split("\n\n")[1] for s in make(task, split, count=40)] for split in SPLITS
    ]
    answers = [{a for s in make(task, split, count=40) for a in s.answers} for split in SPLITS]
    assert answers[0].isdisjoint(answers[1])
    parts = [
        {p for body in own for p in re.split(r"\. |\n|(?<=[a-z]) (?=[a-z]+$)", body)}
        for own in bodies
    ]
    numbers = [{n for body in own for n in re.findall(r"\d{5}", body)} for own in bodies]
    for split, own in zip(SPLITS, numbers, strict=True):
        assert {int(n) % 2 for n in own} <= {POOLS[split].residue}
    if task not in ("common_words", "frequent_words"):
        assert min(len(own) for own in parts) > 500
        assert parts[0].isdisjoint(parts[1])
    else:
        words = [{w for body in own for w in re.findall(r"[a-z]+", body)} for own in bodies]
        assert min(len(own) for own in words) > 20
        assert words[0].isdisjoint(words[1])


def test_single_needle_stands_once_anywhere() -> None:
    depths = []
    for sample in make("single_needle", count=40):
        (answer,) = sample.answers
        assert sample.prompt_text.count(answer) == 1
        depths.append(sample.prompt_text.index(answer) / len(sample.prompt_text))
    assert min(depths) < 0.2
    assert max(depths) > 0.8


def test_multi_key_hides_three_more_numbers() -> None:
    for sample in make("multi_key"):
        facts = dict(re.findall(r"number of (\w+) is (\d{5})\.", sample.prompt_text))
        assert len(facts) == 4
        asked = re.findall(r"What is the secret number of (\w+)", sample.prompt_text)
        assert sample.answers == (facts[asked[0]],)


def test_multi_value_asks_for_both_numbers_of_one_key() -> None:
    for sample in make("multi_value"):
        facts = re.findall(r"number of (\w+) is (\d{5})\.", sample.prompt_text)
        assert len({city for city, _ in facts}) == 1
        assert {number for _, number in facts} == set(sample.answers)
        assert len(sample.answers) == 2


def test_variables_are_a_chain_in_reading_order() -> None:
    for sample in make("variable_tracking"):
        number = re.findall(r"value (\d{5})\?", sample.prompt_text)[0]
        held = {number}
        for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", sample.prompt_text):
            assert source in held, "used before it is assigned"
            held.add(name)
        assert held - {number} == set(sample.answers)
        assert len(sample.answers) == 3


def test_a_chain_is_shown_once_with_other_variables_and_the_right_answer(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    for split in SPLITS:
        for sample in make_samples(
            tokenizer, "variable_tracking", split=split, count=9, tokens=900
        ):
            text = str(tokenizer.decode(sample.prompt_token_ids))
            shown, asked = text.split("Remember the variables that are assigned")[1:]
            assert asked.count(" = ") == shown.count(" = ") == 3
            answered = re.findall(r"VAR (\w+) = ", shown)
            reply = re.findall(r"value \d{5} are (.*)\.<", shown)[0]
            assert set(reply.split(", ")) == set(answered)
            assert set(answered).isdisjoint(sample.answers)
            assert {int(n) % 2 for n in re.findall(r"\d{5}", text)} == {POOLS[split].residue}


def test_common_and_frequent_words_are_those_that_occur_most() -> None:
    for sample in make("common_words"):
        counts = Counter(re.findall(r"\d+\. (\w+)", sample.prompt_text)).most_common(2)
        assert sample.answers == (counts[0][0],)
        assert counts[0][1] > 3 * counts[1][1]
    for sample in make("frequent_words"):
        counts = Counter(sample.prompt_text.split("\n\n")[1].split()).most_common(4)
        assert sample.answers == tuple(word for word, _ in counts[:3])
        assert counts[2][1] > counts[3][1]


def test_score_is_the_share_of_answers_found_as_words() -> None:
    sample = Sample([1], "text", ("12345", "apple"), "")
    assert score(sample, "12345 and Apple") == 1.0
    assert score(sample, "an apple") == 0.5
    assert score(sample, "pineapples 123456") == 0.0


def test_the_answer_is_begun_for_the_model(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    for task in TASKS:
        (sample,) = make_samples(tokenizer, task, split="evaluation", count=1, tokens=500)
        text = str(tokenizer.decode(sample.prompt_token_ids))
        assert sample.prompt_text in text
        assert re.search(r"assistant\n[A-Z][\w ]+ (is|are):?$", text), text[-80:]


def test_refusals() -> None:
    with pytest.raises(HeadAwareError, match=r"single_needle, .* got 'poem'"):
        make("poem")
    with pytest.raises(HeadAwareError, match="split must be one of"):
        make("multi_key", split="test")
    with pytest.raises(HeadAwareError, match="a multi_key prompt does not fit in 20 tokens"):
        make("multi_key", tokens=20)
