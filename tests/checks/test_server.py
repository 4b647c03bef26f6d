"""The server helper waits for health, reports a server that dies, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from testbench.server import Server, ServerError, free_port

HEALTHY = """
    import http.server, subprocess, sys, time

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    time.sleep(0.6)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
TERMINATED = """
    import sys, time
    from pathlib import Path
    from testbench.server import Server, exit_on_sigterm

    exit_on_sigterm()
    server = Server("model", port=0, log=Path(sys.argv[2]))
    server.command = [sys.executable, sys.argv[1], str(server.port)]
    with server:
        print(server._process.pid, flush=True)
        time.sleep(60)
"""
DYING = """
    print("the flag is wrong")
    raise SystemExit(2)
"""


def server_running(code: str, tmp_path: Path) -> Server:
    server = Server("model", port=0, log=tmp_path / "logs" / "server.log")
    server.command = [sys.executable, "-c", textwrap.dedent(code), str(server.port)]
    return server


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_healthy_then_stopped_with_its_children(tmp_path: Path) -> None:
    with server_running(HEALTHY, tmp_path) as server:
        assert server.get("/somewhere") == "/somewhere"
        child = int(server.log.read_text(encoding="utf-8").split()[1])
        assert alive(child)
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_sigterm_stops_the_server_too(tmp_path: Path) -> None:
    """A server has a session of its own, so nobody else would."""
    fake, script, log = tmp_path / "fake.py", tmp_path / "script.py", tmp_path / "server.log"
    fake.write_text(textwrap.dedent(HEALTHY), encoding="utf-8")
    script.write_text(textwrap.dedent(TERMINATED), encoding="utf-8")
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script), str(fake), str(log)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    pids = [int(process.stdout.readline()), int(log.read_text(encoding="utf-8").split()[1])]
    assert all(map(alive, pids))
    process.terminate()
    status = process.wait(20)
    left = list(filter(alive, pids))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert status == 143
    assert not left


def test_a_server_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"status 2(.|\n)*the flag is wrong"):
        server_running(DYING, tmp_path).__enter__()


def test_the_command_is_the_real_one(tmp_path: Path) -> None:
    server = Server("model", port=0, log=tmp_path / "log", serve_args=["--kv-policy", "headaware"])
    assert Path(server.command[0]).name == "vllm"
    assert os.access(server.command[0], os.X_OK)
    assert server.command[1:3] == ["serve", "model"]
    assert server.command[-2:] == ["--kv-policy", "headaware"]
    assert len({server.port, free_port()}) == 2
