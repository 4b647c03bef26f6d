"""Answers are judged pass by pass, by the windows that were seen, as far as they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from checks.replay import DISTURBED, TIE, Pass, Watcher, judge
from testbench.streaming import Answer

WIDE: list[Any] = [[0, {"local": None}]]
PROMPT = [1, 2, 3]


def watch(*states: dict[str, Any]) -> Watcher:
    watcher = Watcher(server=None)  # type: ignore[arg-type]
    for state in states:
        request = {"since": 0, "windows": WIDE, "level": 0, "tokens": 99, **state}
        watcher.note({"level": 1, "surplus_bytes": 5, "requests": [request]})
    return watcher


def answer(tokens: Sequence[int], name: str = "load001x") -> Answer:
    return Answer(name, 0.0, list(tokens), [1.0] * len(tokens))


def one(watcher: Watcher, tokens: Sequence[int], lags: Callable[..., Sequence[float]]) -> Any:
    return judge([(PROMPT, len(tokens))], [answer(tokens)], watcher, 1, lags)


def test_requests_are_found_by_the_clients_name() -> None:
    watcher = watch(
        {"request_id": "cmpl-load001x-0-ab12", "level": 2}, {"request_id": "cmpl-load0010x-0-cd34"}
    )
    assert [own.level for own in watcher.passes_of("load001x")] == [2]
    assert watcher.passes_of("load002x") == []
    assert (watcher.max_level, watcher.most_surplus) == (1, 5)


def test_every_pass_is_read_by_its_own_windows_and_no_further_than_they_are_known() -> None:
    """It was put back when it had 4 tokens, 3 of them under windows that were seen."""
    later = [[0, {"local": 16}]]
    watcher = watch(
        {"request_id": "cmpl-load001x-0-a", "tokens": 4},
        {"request_id": "cmpl-load001x-0-a", "tokens": 5},
        {"request_id": "cmpl-load001x-0-a", "since": 4, "tokens": 8, "windows": later},
    )
    asked = []

    def lags(context: list[int], tokens: list[int], own: Pass, _: bool) -> list[float]:
        asked.append((context, tokens, own.changes))
        return [0.0] * len(tokens)

    result = one(watcher, [10, 11, 12, 13, 14, 15, 16, 17], lags)
    assert asked == [
        (PROMPT, [10, 11, 12], WIDE),
        ([*PROMPT, 10, 11, 12, 13], [14, 15], later),
    ]
    assert (result["tokens_checked"], result["wrong"], result["changes_checked"]) == (5, 0, 2)


def test_a_token_is_wrong_if_it_never_is_as_likely_as_the_first_choice() -> None:
    watcher = watch({"request_id": "cmpl-load001x-0-a"})

    def wrong(clean: list[float], disturbed: list[float]) -> tuple[int, int]:
        asked = []

        def lags(_: Any, __: Any, ___: Pass, is_disturbed: bool) -> list[float]:
            asked.append(is_disturbed)
            return disturbed if is_disturbed else clean

        return one(watcher, [10, 11], lags)["wrong"], asked.count(True)

    assert wrong([0, TIE / 2], [9, 9]) == (0, 0), "nothing more was asked"
    assert wrong([0, 2 * TIE], [TIE, 0]) == (0, 1), "each was somewhere the first choice"
    assert wrong([0, 2 * TIE], [0, TIE]) == (1, DISTURBED)


def test_nothing_seen_is_nothing_checked() -> None:
    result = one(Watcher(server=None), [10], lambda *_: [0.0])  # type: ignore[arg-type]
    assert result["tokens_checked"] == result["requests_checked"] == 0
