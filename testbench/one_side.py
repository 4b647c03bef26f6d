"""One side of a comparison, in a process of its own that says its result as a last line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def ask(
    module: str,
    arguments: Sequence[str] = (),
    env: dict[str, str] | None = None,
    timeout: float | None = None,
) -> tuple[int, Any]:
    """`python -m module arguments`, at the repository's root.

    Args:
        env: what to add to this process's environment.
        timeout: in seconds.

    Returns:
        Its exit status, and what its last line says; None where that is no JSON.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        timeout=timeout,
    )
    try:
        return done.returncode, json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return done.returncode, None


def run_side(module: str, arguments: Sequence[str], env: dict[str, str] | None = None) -> Any:
    """What the last line of ask() says.

    Raises:
        RuntimeError: it failed, or said nothing.
    """
    status, result = ask(module, arguments, env)
    if status or result is None:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with status {status}")
    return result
