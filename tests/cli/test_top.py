"""vllm-headaware top against a server of its own routes: what it shows, and what it says."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from rich.console import Console

from tests.observability.test_live import PLAN, live
from tests.observability.test_metrics import CENSUS
from vllm_headaware.cli.main import main
from vllm_headaware.cli.top import size_text, view
from vllm_headaware.observability.http import add_routes


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with the live page's routes and one census, whose key is `secret`."""
    state = live()
    state.update(CENSUS, 0)
    app = FastAPI()
    allowed = "Bearer secret"
    add_routes(app, lambda r: state, lambda r: r.headers.get("Authorization") == allowed)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        pass
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_one_moment_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", url, "--once", "--json", "--api-key", "secret"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["used_bytes"] == 20 * PLAN.block_bytes
    assert shown["unpromised_bytes"] == 35 * PLAN.block_bytes
    assert shown["level"] == 1


def test_one_moment_in_the_terminal(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", url.removeprefix("http://"), "--once", "--api-key", "secret"]) == 0
    text = capsys.readouterr().out
    assert size_text(20 * PLAN.block_bytes) in text
    assert "retrieval" in text
    assert "head 2" in text
    assert "new requests get level 1" in " ".join(text.split())


def test_errors_say_what_to_do(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([url, "--once"], "--api-key"),
        (["http://127.0.0.1:9", "--once"], "no server answers"),
        ([url + "/nowhere", "--once"], "--kv-policy"),
        ([url, "--interval", "0"], "--interval"),
    ):
        assert main(["top", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_the_map_has_a_digit_per_head_and_fits_the_width() -> None:
    state = live()
    state.update(CENSUS, 0)
    now: dict[str, Any] = state.heads()
    console = Console(width=30, record=True, force_terminal=False)
    console.print(view(state.plan_json(), now, 30))
    rows = [line[8:] for line in console.export_text().splitlines() if line.startswith("head ")]
    digits = "".join(rows)
    assert len(digits.replace(" ", "")) == 90
    largest = max(b for row in now["head_bytes"] for b in row)
    expected = {str(min(int(b / largest * 10), 9)) for row in now["head_bytes"] for b in row}
    assert set(digits.strip()) >= expected
