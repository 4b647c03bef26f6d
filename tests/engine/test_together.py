"""Every row of SUPPORTED in the conflict matrix is run here, or in the test it names."""

from pathlib import Path
from typing import Any

import pytest
import torch

from testbench.hf_reference import HFReference, rules_of
from testbench.small_requests import POLICY
from tests.engine.scenario import run_scenario
from tests.engine.together import BEAM_TOKENS, BEAM_WIDTH, make_adapter, run_together
from vllm_headaware.plan.plan_json import plan_from_dict
from vllm_headaware.vllm_compat.front_end.conflicts import SUPPORTED

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def some(prompts: list[list[int]]) -> list[list[int]]:
    return [prompts[i] for i in (1, 8, 14, 16)]


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LoRA adapter's folder, and what it adds to the weights."""
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    return folder, make_adapter(model, folder)


@pytest.fixture(scope="module")
def everything(model: Path, adapter: Any, some: list[list[int]]) -> Any:
    return run_together(model, adapter[0], some, POLICY)


@pytest.fixture(scope="module")
def reference(model: Path, everything: Any) -> HFReference:
    return HFReference(model, rules_of(plan_from_dict(everything["plan"])))


def test_every_supported_row_names_its_test() -> None:
    here = Path(__file__).parent
    for row in SUPPORTED:
        file, _, name = row.test.partition("::")
        assert f"def {name}(" in (here / file).read_text(), row


def test_plain(everything: Any, reference: HFReference, some: list[list[int]]) -> None:
    for prompt, (tokens,) in zip(some, everything["plain"], strict=True):
        assert tokens == reference.greedy(prompt, 12)


def test_siblings(everything: Any) -> None:
    for (greedy,), siblings in zip(everything["plain"], everything["siblings"], strict=True):
        assert siblings == [greedy] * 3, "top-1 sampling is greedy"


def test_lora(model: Path, adapter: Any, everything: Any, some: list[list[int]]) -> None:
    adapted = HFReference(model, rules_of(plan_from_dict(everything["plan"])))
    weights = dict(adapted.model.named_parameters())
    with torch.no_grad():
        for name, added in adapter[1].items():
            weights[name] += added
    for prompt, (tokens,) in zip(some, everything["lora"], strict=True):
        assert tokens == adapted.greedy(prompt, 12)
    assert everything["lora"] != everything["plain"]


def test_guided(everything: Any, reference: HFReference, some: list[list[int]]) -> None:
    """Of the words allowed, the one that is likelier under the rule."""
    words = [int(word[1:]) for word in everything["choices"]]
    for prompt, (tokens,) in zip(some, everything["guided"], strict=True):
        logprobs = reference.logprobs(prompt)[-1]
        assert tokens[0] == max(words, key=lambda word: float(logprobs[word]))


def test_beams(everything: Any, reference: HFReference, some: list[list[int]]) -> None:
    for prompt, found in zip(some, everything["beams"], strict=True):
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(BEAM_TOKENS):
            grown = []
            for score, tokens in beams:
                best = reference.logprobs([*prompt, *tokens])[-1].topk(2 * BEAM_WIDTH)
                grown += [
                    (score + float(value), [*tokens, int(token)])
                    for value, token in zip(best.values, best.indices, strict=True)
                ]
            beams = sorted(grown, key=lambda beam: -beam[0])[:BEAM_WIDTH]
        assert [tokens[len(prompt) :] for tokens in found] == [tokens for _, tokens in beams]


def test_abort(model: Path, prompts: list[list[int]], together: Any) -> None:
    engine = {**POLICY, "max_num_batched_tokens": 100, "max_num_seqs": 9}
    names = [f"0/{index}" for index in (0, 6, 10, 15)]
    report = run_scenario(model, rounds=[prompts], engine=engine, abort={"7": names})
    assert report["held_at_end"] == 0
    assert report["faults"] == []
    assert report["remembered"] == 0, "nothing of a finished request stays behind"
    for name, tokens in together["tokens"].items():
        if name not in names:
            assert report["tokens"][name] == tokens
