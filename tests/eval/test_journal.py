"""Finished runs survive a process, a crash in the middle of a line, and other code."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_headaware.eval import journal
from vllm_headaware.eval.journal import Journal, journal_path, key_of


def test_results_are_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "j.jsonl"
    first = Journal(path)
    assert first.get("a") is None
    first.put("a", "an answer\nof two lines")
    first.put("b", [0.5, 1.5])
    again = Journal(path)
    assert again.get("a") == "an answer\nof two lines"
    assert again.get("b") == [0.5, 1.5]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path).put("a", 1)
    Journal(path).put("b", 2)
    path.write_text(path.read_text()[:-3])
    again = Journal(path)
    assert (again.get("a"), again.get("b")) == (1, None)
    again.put("c", 3)
    last = Journal(path)
    assert [last.get(key) for key in "abc"] == [1, None, 3]


def test_nothing_is_kept_without_a_path() -> None:
    kept = Journal(None)
    kept.put("a", 1)
    assert kept.get("a") == 1
    assert Journal(None).get("a") is None


def test_keys_tell_everything_apart() -> None:
    assert key_of("answer", [1, 2]) == key_of("answer", [1, 2])
    assert len({key_of("a", [1, 2]), key_of("a", [1], 2), key_of("a1", [2]), key_of("a")}) == 4


def test_other_code_or_another_model_starts_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = journal_path("sha256:" + "5" * 64)
    assert path.parent == tmp_path / "vllm-headaware" / "eval"
    assert journal_path("sha256:" + "6" * 64) != path
    monkeypatch.setattr(journal, "SOURCES", journal.SOURCES[1:])
    assert journal_path("sha256:" + "5" * 64) != path
