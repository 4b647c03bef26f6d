"""An engine in a process of its own, which prints its report as one marked line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = "REPORT "


def run_child(module: str, argument: Any, environment: dict[str, str] | None = None) -> Any:
    """Run `python -m module ARGUMENT` and return what it hands to report().

    Raises:
        AssertionError: the process failed; its last output is in the message.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(argument)],
        cwd=ROOT,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "WARNING", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    reports = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert reports, (
        f"{module} failed ({done.returncode})\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return json.loads(reports[-1].removeprefix(MARK))


def report(values: Any) -> None:
    """Hand values to the parent process."""
    print(MARK + json.dumps(values), flush=True)
