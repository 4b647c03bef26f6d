"""The check of the live page passes on the page as it is, and finds every fault put into it."""

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from checks.page_check import LivePageCheck
from monitoring.browser import CHROMIUM
from testbench.server import free_port
from tests.observability.test_live import live
from tests.observability.test_metrics import CENSUS
from vllm_headaware.observability import http
from vllm_headaware.observability.live import LiveState

PAGE = http.PAGE.read_text(encoding="utf-8")
SECONDS, PATIENCE = 5.0, 60.0
"""How long the page is watched for requests, and at most for news; it asks once a second."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (any(map(shutil.which, CHROMIUM)) and shutil.which("chromedriver")),
        reason="needs Chromium: run `make monitoring-tools`",
    ),
]


class FakeServer:
    """The routes over a live state that changes all the time; no engine.

    Attributes:
        truth: census time -> bytes held, of every census there was.
    """

    def __init__(self) -> None:
        self.state: LiveState = live()
        self.truth: dict[float, float] = {}
        app = FastAPI()
        http.add_routes(app, lambda request: self.state, lambda request: True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")
        self._server = uvicorn.Server(config)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._server.run),
            threading.Thread(target=self._work),
        ]

    def __enter__(self) -> "FakeServer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.should_exit = True
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        step = 0
        while not self._stop.wait(0.2):
            step += 1
            held = {**CENSUS.held, "local": 5 + step % 7}
            used = sum(held.values()) + CENSUS.pending
            census = dataclasses.replace(CENSUS, at=time.time(), held=held, free=100 - used)
            self.truth[census.at] = used * self.state.plan.block_bytes
            self.state.update(census, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


def check(
    server: FakeServer, page: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[str]]:
    """What the check says of a page, and the censuses it saw that are not the truth."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    monkeypatch.setattr(http, "PAGE", path)
    with LivePageCheck(server.url, folder, closely_after=1) as watched:
        begin = time.monotonic()

        def watched_enough() -> bool:
            taken = time.monotonic() - begin
            enough = len(watched.seen) > 2 and (watched.looked_closely or taken > SECONDS)
            return enough or taken > PATIENCE

        watched.watch(until=watched_enough)
    wrong = [
        json.dumps([at, *values])
        for at, values in watched.seen.items()
        if any(abs(value - server.truth[at]) > 1 for value in values)
    ]
    assert len(watched.seen) > 2, "the page does not follow the server"
    return watched.failures, wrong


def test_the_page_is_fine(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(server, PAGE, tmp_path, monkeypatch) == ([], [])
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert (tmp_path / "page-phone.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("before", "after", "failure"),
    [
        ("  strip(now.history);", "  strip(now.history); console.error('x');", "console: "),
        ('<link rel="icon" href="data:,">', "", "console: "),
        (
            '    cell.className = "cell";',
            '    cell.className = layer ? "" : "cell";',
            "not every",
        ),
        ("ArrowRight: [1, 0]", "ArrowRight: [0, 1]", "right arrow"),
        ("margin: 0 auto; max-width: 76rem;", "margin: 0 auto; min-width: 50rem;", "wider than"),
        ("now.requests.map((r)", "[].map((r)", "never showed a request"),
    ],
    ids=["console", "icon", "cells", "keys", "phone", "requests"],
)
def test_faults_are_found(
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    after: str,
    failure: str,
) -> None:
    assert PAGE.count(before) == 1
    failures, _ = check(server, PAGE.replace(before, after), tmp_path, monkeypatch)
    assert any(failure in text for text in failures), failures


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("dataset.bytes = now.used_bytes;", "dataset.bytes = now.capacity_bytes;"),
        ("    cell.dataset.bytes = held;", "    cell.dataset.bytes = head ? held : 0;"),
    ],
    ids=["held", "heads"],
)
def test_wrong_numbers_are_found(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    assert PAGE.count(before) == 1
    assert check(server, PAGE.replace(before, after), tmp_path, monkeypatch)[1]
