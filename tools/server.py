"""Start the real `vllm serve` on the demo model, wait until it is healthy, stop it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_SECONDS = 420


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_server(
    model: Path, *flags: str, port: int, log: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yield (base URL, process) of a healthy server; it is stopped afterwards.

    Args:
        flags: further `vllm serve` flags.
        log: where its output goes; None leaves it on this terminal.

    Raises:
        RuntimeError: the server ended or was not healthy within START_TIMEOUT_SECONDS.
    """
    command = [
        str(Path(sys.executable).with_name("vllm")),
        "serve",
        str(model),
        *("--served-model-name", "smollm2", "--dtype", "float32"),
        *("--max-model-len", "8192", "--host", "127.0.0.1", "--port", str(port)),
        *flags,
    ]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ}
    sink = log.open("w") if log else None
    process = subprocess.Popen(
        command, env=environment, stdout=sink, stderr=sink, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, process, log)
        yield url, process
    finally:
        _stop(process)
        if sink:
            sink.close()


def _wait_until_healthy(url: str, process: subprocess.Popen, log: Path | None) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            detail = log.read_text()[-3000:] if log else ""
            raise RuntimeError(f"vllm serve ended with status {process.returncode}\n{detail}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"vllm serve was not healthy after {START_TIMEOUT_SECONDS} s")


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
