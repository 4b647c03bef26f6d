"""What a measurement has found so far, in files: one that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vllm_headaware import __version__
from vllm_headaware.profile.user_cache import user_cache


class Findings:
    """Results by name; each is found once, by this process or by one before it.

    Args:
        folder: created when the first result comes; None keeps nothing.
        tick: called with the progress that finding a result would have shown, where it was there.
    """

    def __init__(self, folder: Path | None, tick: Callable[[int], object] = lambda _: None) -> None:
        self.folder, self._tick = folder, tick

    def once(self, name: str, find: Callable[[], Any], ticks: int = 0) -> Any:
        """What `find` returns: tensors and plain values. A file that cannot be read or written is
        none."""
        if self.folder is None:
            return find()
        path = self.folder / f"{name}.pt"
        try:
            found = torch.load(path, weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
            found = find()
            self._keep(path, found)
        else:
            self._tick(ticks)
        return found

    def forget(self) -> None:
        """All is done, or nothing of it is wanted."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _keep(path: Path, found: Any) -> None:
        part = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(found, part)
            part.replace(path)
        except (OSError, RuntimeError):
            with suppress(OSError):
                part.unlink(missing_ok=True)


def unfinished_place(model_hash: str, asked: dict[str, Any]) -> Path:
    """Where the findings of a measurement are kept until it is done.

    Args:
        asked: plain values that results depend on, besides the model and this version.
    """
    what = json.dumps([model_hash, __version__, asked], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:32]
    return user_cache() / "unfinished" / digest
