"""Finished runs, kept in a file, so that a comparison that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vllm_headaware.profile.user_cache import user_cache

SOURCES = (
    *("eval/cache.py", "eval/methods.py", "eval/runner.py"),
    *("kernels/reference.py", "profile/probe.py"),
)
"""What a result depends on besides model, method and prompt, in the package's folder."""


class Journal:
    """Results by what they are results of; one JSON line each, written when it is known.

    A line that was cut off by a crash is left out. Two processes may write to one file.

    Args:
        path: created when the first result comes; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.results: dict[str, Any] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    self.results[entry["key"]] = entry["result"]
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> Any:
        """The result, or None."""
        return self.results.get(key)

    def put(self, key: str, result: Any) -> None:
        """Remember a result: plain JSON values."""
        self.results[key] = result
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The line break comes first, so that a line that was cut off spoils no other.
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"key": key, "result": result}))


def key_of(*parts: Any) -> str:
    """A key from plain values; the same values give the same key in every process."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def journal_path(model_hash: str) -> Path:
    """Where the results of a model are kept: a new file when the evaluator's code changes."""
    name = f"{model_hash.removeprefix('sha256:')[:16]}-{sources_digest()[:8]}.jsonl"
    return user_cache() / "eval" / name


def sources_digest() -> str:
    """sha256 over the code that results depend on."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update((package / source).read_bytes())
    return digest.hexdigest()
