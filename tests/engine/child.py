"""An engine in a process of its own, which prints its report as one marked line of JSON."""

from __future__ import annotations

import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
MARK = "REPORT "
TIMEOUT_SECONDS = 600


def run_child(
    module: str, argument: Any, environment: dict[str, str] | None = None, fresh: bool = False
) -> Any:
    """Run `python -m module ARGUMENT` and return what it hands to report().

    Args:
        fresh: in a new Python, not forked from one that has vLLM imported already.

    Raises:
        AssertionError: the process failed; its last output is in the message.
    """
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "WARNING", **(environment or {})}
    text = json.dumps(argument)
    with tempfile.NamedTemporaryFile("w+") as out, tempfile.NamedTemporaryFile("w+") as errors:
        if fresh:
            code = subprocess.run(
                [sys.executable, "-m", module, text],
                cwd=ROOT,
                env=env,
                stdout=out,
                stderr=errors,
                check=False,
                timeout=TIMEOUT_SECONDS,
            ).returncode
        else:
            asked = {"module": module, "argument": text, "env": env}
            code = _nursery().fork({**asked, "stdout": out.name, "stderr": errors.name})
        said, complained = Path(out.name).read_text(), Path(errors.name).read_text()
    reports = [line for line in said.splitlines() if line.startswith(MARK)]
    assert reports, f"{module} failed ({code})\n{said[-2000:]}{complained[-4000:]}"
    return json.loads(reports[-1].removeprefix(MARK))


def report(values: Any) -> None:
    """Hand values to the parent process."""
    print(MARK + json.dumps(values), flush=True)


class Nursery:
    """tests/engine/nursery.py; it ends with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.nursery"],
            cwd=ROOT,
            env={**os.environ, "VLLM_LOGGING_LEVEL": "WARNING"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, asked: dict[str, Any]) -> int:
        """One child after the other; the exit status."""
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            return self._answer(stdout)

    def _answer(self, stdout: IO[str]) -> int:
        while True:
            if not select.select([stdout], [], [], TIMEOUT_SECONDS)[0]:
                self._process.kill()
                _nursery.cache_clear()
                raise TimeoutError(f"a child took more than {TIMEOUT_SECONDS} s")
            line = stdout.readline()
            if not line:
                raise ChildProcessError("the nursery ended")
            if line.strip().lstrip("-").isdigit():  # else something that an import says
                return int(line)


@functools.cache
def _nursery() -> Nursery:
    return Nursery()
