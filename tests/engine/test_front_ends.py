"""Several front ends and engines on one port: every event counts once; the key is asked for."""

import json
import re
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from testbench.server import SERVED_NAME, Server
from testbench.small_requests import POLICY, make_prompts

pytestmark = [pytest.mark.engine, pytest.mark.slow]

KEY = "secret"
PROMPTS = make_prompts(211, (97, 450, 33, 310, 201, 128, 61, 255))
ASKED_OF_EACH = 20
"""Requests for the JSON: enough that every front end answers some of them."""


def call(server: Server, path: str, body: Any = None, key: str | None = KEY) -> tuple[int, str]:
    """Status and body of a request on a connection of its own."""
    headers = {"Content-Type": "application/json", "Connection": "close"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(server.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Metrics:
    """One scrape: sums of vllm_headaware_ samples by name, and by name and engine."""

    def __init__(self, server: Server) -> None:
        self.total: dict[str, float] = defaultdict(float)
        self.by_engine: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        pattern = r'^vllm_headaware_(\w+)\{.*?engine="(\d+)".*?\} (\S+)$'
        for name, engine, value in re.findall(pattern, server.get("/metrics"), flags=re.MULTILINE):
            self.total[name] += float(value)
            self.by_engine[name][engine] += float(value)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 engine", "2 engines"])
def loaded(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, int, list[dict[str, Any]]]]:
    """A server of two front ends that answered PROMPTS, its engines, and its JSON meanwhile."""
    engines = request.param
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in POLICY.items()]
    serve_args = [
        *flags,
        *("--enforce-eager", "--max-model-len", "1024", "--api-key", KEY),
        *("--api-server-count", "2", "--data-parallel-size", str(engines)),
    ]
    log = tmp_path_factory.mktemp("front-ends") / "server.log"
    with Server(model, port=0, log=log, serve_args=serve_args) as server:
        seen = []
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            body = {"model": SERVED_NAME, "max_tokens": 500, "ignore_eos": True, "temperature": 0}
            answers = [
                pool.submit(call, server, "/v1/completions", {**body, "prompt": prompt})
                for prompt in PROMPTS
            ]
            while not all(answer.done() for answer in answers):
                seen.append(json.loads(call(server, "/headaware/heads.json")[1]))
                time.sleep(0.1)
        assert [answer.result()[0] for answer in answers] == [200] * len(PROMPTS)
        time.sleep(1.0)
        yield server, engines, seen


Loaded = tuple[Server, int, list[dict[str, Any]]]


def test_every_event_counts_once(loaded: Loaded) -> None:
    server, engines, _ = loaded
    metrics = Metrics(server)
    assert metrics.total["request_kv_bytes_count"] == len(PROMPTS)
    assert metrics.total["head_kept_tokens_count"] == 3 * len(PROMPTS)
    assert len(metrics.by_engine["request_kv_bytes_count"]) == engines
    assert all(metrics.by_engine["request_kv_bytes_count"].values()), "one engine did nothing"
    assert metrics.total["blocks_freed_total"] > 0


def test_an_idle_server_holds_nothing(loaded: Loaded) -> None:
    server, engines, _ = loaded
    metrics = Metrics(server)
    capacity = metrics.by_engine["kv_capacity_bytes"]
    assert sorted(capacity) == [str(engine) for engine in range(engines)]
    assert all(capacity.values())
    for name in ("kv_used_bytes", "kv_class_bytes", "kv_head_bytes", "kv_requests"):
        assert len(metrics.by_engine[name]) == engines
        assert metrics.total[name] == 0, name


def test_every_front_end_shows_all_engines(loaded: Loaded) -> None:
    server, engines, _ = loaded
    capacity = Metrics(server).total["kv_capacity_bytes"]
    answers = [call(server, "/headaware/heads.json") for _ in range(ASKED_OF_EACH)]
    assert {status for status, _ in answers} == {200}
    for _, text in answers:
        shown = json.loads(text)
        assert shown["engines"] == engines
        assert shown["capacity_bytes"] == capacity
        assert shown["used_bytes"] == 0


def test_sums_agree_under_load(loaded: Loaded) -> None:
    _, _, seen = loaded
    held = [shown for shown in seen if shown["used_bytes"]]
    assert held
    for shown in held:
        heads = sum(map(sum, shown["head_bytes"])) + shown["pending_bytes"]
        assert heads == pytest.approx(shown["used_bytes"])
    assert max(shown["running"] for shown in held) <= len(PROMPTS)


def test_the_key_is_asked_for(loaded: Loaded) -> None:
    server, _, _ = loaded
    for path in ("/headaware/heads.json", "/headaware/plan.json"):
        assert call(server, path, key=None)[0] == 401
        assert call(server, path, key="wrong")[0] == 401
        assert call(server, path)[0] == 200
    assert call(server, "/headaware", key=None)[0] == 200
