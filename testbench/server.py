"""Start the real `vllm serve`, wait until it is healthy, stop it and whatever it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from testbench.engine import DEFAULT_KV_GIB
from testbench.progress import say

DEMO = Path(__file__).resolve().parent.parent / ".cache" / "models" / "SmolLM2-135M-Instruct"
"""The model that tools serve when none is named."""
SERVED_NAME = "smollm2"
MAX_MODEL_LEN = 8192
START_TIMEOUT_SECONDS = 600.0
STOP_TIMEOUT_SECONDS = 30.0


class ServerError(Exception):
    """The server did not start, or ended by itself."""


class Server:
    """A `vllm serve` process on this machine; use as a context manager.

    Args:
        model: model folder.
        port: port to listen on; 0 picks a free one.
        log: file that gets the server's output.
        serve_args: further arguments of `vllm serve`, such as --kv-policy headaware.

    Raises:
        ServerError: on entering, when it is not healthy in time; names the log.
    """

    def __init__(
        self, model: str | Path, *, port: int, log: Path, serve_args: Sequence[str] = ()
    ) -> None:
        self.port = port or free_port()
        self.log = log
        self.command = [
            str(Path(sys.executable).with_name("vllm")),
            "serve",
            str(model),
            "--served-model-name",
            SERVED_NAME,
            "--dtype",
            "float32",
            "--max-model-len",
            str(MAX_MODEL_LEN),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            *serve_args,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        env = {"VLLM_CPU_KVCACHE_SPACE": DEFAULT_KV_GIB, **os.environ}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._output = self.log.open("wb")
        self._process = subprocess.Popen(
            self.command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self) -> None:
        """Return when the server ends by itself.

        Raises:
            ServerError: it always does; servers end when they are stopped.
        """
        assert self._process is not None
        raise ServerError(f"vllm serve ended with status {self._process.wait()}{self.tail()}")

    def get(self, path: str) -> str:
        """Body of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return response.read().decode()

    def tail(self, lines: int = 15) -> str:
        """The end of the log, for error messages."""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return "; the end of " + "\n".join([f"{self.log}:", *text])

    def stop(self) -> None:
        """End the server and its children: politely, then not."""
        process = self._process
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._output is not None:
            self._output.close()

    def _wait_until_healthy(self) -> None:
        assert self._process is not None
        start = said = time.monotonic()
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError):
                self.get("/health")
                return
            if self._process.poll() is not None:
                self.wait()
            now = time.monotonic()
            if now - start > START_TIMEOUT_SECONDS:
                raise ServerError(f"not healthy after {START_TIMEOUT_SECONDS:.0f} s{self.tail()}")
            if now - said > 10:
                said = now
                say(f"the server is starting (log: {self.log})")
            time.sleep(0.5)


def exit_on_sigterm() -> None:
    """Leave `with` blocks when asked to terminate, so that the server is stopped too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
