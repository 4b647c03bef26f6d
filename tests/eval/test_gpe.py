"""Group positions and lags against their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from vllm_headaware.cli.main import main
from vllm_headaware.eval.gpe import (
    StreamCache,
    interleave,
    target_logprobs,
    visible_in_stream,
    write,
)
from vllm_headaware.eval.lag import average_lagging, length_adaptive_average_lagging, wait_k
from vllm_headaware.tasks import text


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, 211, (count,), generator=generator).tolist()


def test_each_side_counts_its_own_positions() -> None:
    stream = interleave([50, 51, 52, 53], [60, 61, 62], [2, 2, 3], phi=7)
    assert stream.tokens.tolist() == [50, 51, 60, 61, 52, 62, 53]
    assert stream.positions.tolist() == [0, 1, 7, 8, 2, 9, 3]
    assert stream.target.tolist() == [False, False, True, True, False, True, False]
    moved = interleave([50, 51, 52, 53, 54, 55], [60, 61, 62], [2, 2, 3], phi=7)
    assert moved.positions[moved.target].tolist() == [7, 8, 9], "more source moves no target"


def test_source_never_sees_target_and_target_sees_all_that_came() -> None:
    target = interleave([1, 2, 3], [4, 5], [1, 2]).target
    assert visible_in_stream(target).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 1, 0, 1],
    ]


@pytest.mark.parametrize(
    ("reads", "phi", "message"),
    [
        ([2, 1], 0, "not reads"),
        ([1, 4], 0, "not reads"),
        ([1], 0, "not reads"),
        ([1, 2], -1, "phi"),
    ],
)
def test_impossible_streams_are_refused(reads: list[int], phi: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interleave([1, 2, 3], [4, 5], reads, phi)


def test_source_states_are_those_of_the_source_alone(model: Any) -> None:
    source, target = ids(23, 1), ids(9, 2)
    stream = interleave(source, target, wait_k(5, 23, 9), phi=3)
    logits = StreamCache(model).push(stream)
    with torch.inference_mode():
        alone = model(torch.tensor([source])).logits[0]
    torch.testing.assert_close(logits[~stream.target], alone, atol=1e-4, rtol=0)


def test_phi_at_the_end_of_a_source_that_was_read_is_an_ordinary_sequence(model: Any) -> None:
    source, target = ids(23, 1), ids(9, 2)
    logits = StreamCache(model).push(interleave(source, target, [23] * 9, phi=23))
    with torch.inference_mode():
        ordinary = model(torch.tensor([source + target])).logits[0]
    torch.testing.assert_close(logits, ordinary, atol=1e-4, rtol=0)
    other = StreamCache(model).push(interleave(source, target, [23] * 9, phi=0))
    assert float((other[23:] - ordinary[23:]).abs().max()) > 0.01, "phi must matter"


def test_token_by_token_is_the_same_as_all_at_once(model: Any) -> None:
    stream = interleave(ids(23, 1), ids(9, 2), wait_k(4, 23, 9))
    cache, pieces = StreamCache(model), []
    for begin, end in ((0, 4), (4, 5), (5, 17), (17, 32)):
        parts = (getattr(stream, name)[begin:end] for name in ("tokens", "positions", "target"))
        pieces.append(cache.push(type(stream)(*parts)))
    torch.testing.assert_close(
        torch.cat(pieces), StreamCache(model).push(stream), atol=1e-4, rtol=0
    )


def test_what_is_written_is_what_the_stream_makes_most_likely(model: Any) -> None:
    source, given = ids(17, 3), ids(2, 4)
    written, reads = write(model, source, given, 6, phi=5, limit=14)
    assert reads == wait_k(6, 17, len(written))
    ahead = [6, 6, *reads[1:], reads[-1]]
    stream = interleave(source, given + written, ahead, phi=5)
    logprobs = target_logprobs(StreamCache(model).push(stream), stream, given=2)
    assert logprobs.argmax(-1).tolist() == written
    whole, _ = write(model, source, given, 99, phi=5, limit=14)
    assert whole != written, "what has not been read must matter"


def test_lags_by_hand() -> None:
    assert wait_k(2, 5, 7) == [2, 3, 4, 5, 5, 5, 5]
    # Four of five source tokens are waited for in step with an even pace of 1: lag k.
    assert average_lagging([2, 3, 4, 5, 5], 5) == pytest.approx(2)
    assert average_lagging([6] * 3, 6) == 6, "reading everything first lags by all of it"
    # Twice as many target tokens: the even pace is half a token.
    assert average_lagging([1, 1, 2, 2], 2) == pytest.approx((1 + 0.5 + 1) / 3)
    assert average_lagging([1, 2], 4) == pytest.approx((1 + (2 - 2)) / 2), "source never ended"


def test_writing_too_much_does_not_lower_laal() -> None:
    reads = [3, 4, 5, 6, *[6] * 20]
    assert average_lagging(reads, 6, 6) == pytest.approx(3), "as if it had written 6"
    assert length_adaptive_average_lagging(reads, 6, 6) == pytest.approx(3 + (1 + 2 + 3) * 0.75 / 4)
    assert length_adaptive_average_lagging(reads, 6, 6) == average_lagging(reads, 6)
    # A reference longer than what was written sets the pace.
    short = [3, 4, 5, 6, 6, 6]
    assert length_adaptive_average_lagging(short, 6, 12) == pytest.approx((3 + 3.5 + 4 + 4.5) / 4)
    with pytest.raises(ValueError, match="lag of 0 target tokens"):
        average_lagging([], 6)
    with pytest.raises(ValueError, match="at least 1"):
        wait_k(0, 3, 3)


def test_from_the_command_line(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "held_out_text", lambda: " ".join(f"w{i}" for i in range(8, 208)))
    argv = ["eval", "gpe", str(tiny_model), "--passages", "2", "--tokens", "20", "--wait-k", "3,9"]
    assert main([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(r["positions"], r["wait_k"]) for r in rows] == [
        ("ordinary", None),
        ("group", None),
        ("group", 3),
        ("group", 9),
    ]
    assert rows[2]["al"] < rows[3]["al"] < rows[1]["al"]
    assert main(argv) == 0
    assert "LAAL" in capsys.readouterr().out
    assert main(["eval", "gpe", str(tiny_model), "--phi", "-1"]) == 2
