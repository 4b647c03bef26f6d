"""What is asked: of the calibration split, of every kind, weighed as documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vllm_headaware.profile.questions import PASSAGE_TOKENS, make_answers, make_questions
from vllm_headaware.tasks.words import POOLS


@pytest.mark.parametrize("samples", [2, 3, 11, 24])
def test_a_third_are_chains_and_they_weigh_as_all_needles(tiny_model: Path, samples: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    questions = make_questions(
        tokenizer, samples=samples, lengths=(900, 600, 900), seed=0, sink=4, window=64
    )
    chains = [question for question in questions if not question.needle]
    needles = [question for question in questions if question.needle]
    assert (len(questions), len(chains)) == (samples, max(samples // 3, 1))
    assert sum(question.weight for question in chains) == pytest.approx(1)
    assert sum(question.weight for question in needles) == pytest.approx(1)
    for question in questions:
        asked_for = 600 if not question.needle or len(question.input_ids) < 700 else 900
        assert asked_for - 30 < len(question.input_ids) - question.num_answer_tokens <= asked_for
        long = [other for other in needles if len(other.input_ids) > 700]
        if question.needle and long:
            assert question.weight == pytest.approx(long[0].weight * asked_for / 900)


def test_what_is_asked_is_of_the_calibration_split(demo_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    questions = make_questions(tokenizer, samples=9, lengths=(700,), seed=3, sink=4, window=64)
    for question in questions:
        ids = question.input_ids.tolist()
        prompt = str(tokenizer.decode(ids[: -question.num_answer_tokens]))
        reply = str(tokenizer.decode(ids[-question.num_answer_tokens :]))
        assert any(person in prompt for person in POOLS["calibration"].people)
        assert not any(person in prompt for person in POOLS["evaluation"].people)
        if question.needle:
            secret = str(tokenizer.decode(list(question.needle)))
            assert secret in prompt
            assert secret in reply
        else:
            names = reply.strip(" .").split(", ")
            assert len(names) == 3
            assert all(f"VAR {name} = " in prompt for name in names)
    assert {question.is_far for question in questions if question.needle} == {True, False}
    assert all(question.needle for question in questions if question.is_far)


def test_answers_are_of_five_kinds_in_whole_rounds(demo_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    lengths = (400, 700)
    answers = make_answers(tokenizer, each=3, lengths=lengths, seed=0)
    assert len(answers) == 3 * 5 * len(lengths)
    sizes = [len(one.input_ids) - one.num_answer_tokens for one in answers]
    for index, size in enumerate(sizes):
        asked = lengths[index % 10 // 5]
        kind = index % 5  # text, code, copies, needles, chains
        assert size == asked if kind < 3 else asked - 40 < size <= asked
        assert (answers[index].num_answer_tokens == PASSAGE_TOKENS) == (kind < 3)
    copy = answers[2].input_ids.tolist()
    passage = copy[-PASSAGE_TOKENS - 32 :]
    earlier = copy[: -PASSAGE_TOKENS - 32]
    starts = range(len(earlier) - len(passage))
    assert any(earlier[at : at + len(passage)] == passage for at in starts), "nothing to copy"
    prompts = {tuple(one.input_ids.tolist()) for one in answers}
    assert len(prompts) == len(answers)
