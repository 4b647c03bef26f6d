"""A real server: options of requests, malformed ones, clients and engines that die."""

import json
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from testbench.hf_reference import HFReference, rules_of
from testbench.server import SERVED_NAME, Server
from testbench.small_requests import POLICY
from vllm_headaware.config import make_config
from vllm_headaware.plan import Plan
from vllm_headaware.plan.geometry import read_geometry
from vllm_headaware.profile.planning import plan_model

pytestmark = pytest.mark.engine

MAX_LEN = 1024
CLIENT = """
import json, sys, urllib.request
request = urllib.request.Request(
    sys.argv[1] + "/v1/completions", sys.argv[2].encode(), {"Content-Type": "application/json"}
)
with urllib.request.urlopen(request) as stream:
    for line in stream:
        print(line.decode(), flush=True)
"""


def new_server(model: Path, log: Path, *more: str) -> Server:
    """One that is not started yet, with further flags."""
    flags = [
        text
        for name, value in POLICY.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    serve_args = [
        *flags,
        *("--max-model-len", str(MAX_LEN), "--enforce-eager", "--max-num-batched-tokens", "128"),
        *("--kv-request-budget-max", "600", *more),
    ]
    return Server(model, port=0, log=log, serve_args=serve_args)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with new_server(model, tmp_path_factory.mktemp("server") / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def plan(model: Path) -> Plan:
    config = make_config({name.removeprefix("kv_"): value for name, value in POLICY.items()})
    return plan_model(config, read_geometry(model, "float32", MAX_LEN), model)[0]


def ask(server: Server, prompt: Any, **options: Any) -> tuple[int, Any]:
    """HTTP status and body of a completion."""
    body = {
        "model": SERVED_NAME,
        "prompt": prompt,
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **options,
    }
    request = urllib.request.Request(
        server.url + "/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def held(server: Server) -> float:
    """Bytes that requests hold, as /metrics says."""
    lines = server.get("/metrics").splitlines()
    values = [x.rpartition(" ")[2] for x in lines if x.startswith("vllm_headaware_kv_used_bytes{")]
    assert len(values) == 1
    return sum(map(float, values))


def expect_nothing_held(server: Server) -> None:
    deadline = time.monotonic() + 20
    while held(server) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert held(server) == 0


def test_tokens_are_the_references(
    server: Server, model: Path, plan: Plan, prompts: list[list[int]]
) -> None:
    some = prompts[5:]
    with ThreadPoolExecutor(len(some)) as clients:
        answers = list(clients.map(lambda prompt: ask(server, prompt), some))
    reference = HFReference(model, rules_of(plan))
    for prompt, (status, answer) in zip(some, answers, strict=True):
        assert status == 200
        assert answer["choices"][0]["token_ids"] == reference.greedy(prompt, 12)
    started = [
        line.rpartition(" ")[2]
        for line in server.get("/metrics").splitlines()
        if line.startswith("vllm_headaware_requests_started_total{") and 'level="0"' in line
    ]
    assert [float(count) for count in started] == [len(some)]
    expect_nothing_held(server)


def test_a_request_asks_for_everything(
    server: Server, model: Path, prompts: list[list[int]]
) -> None:
    status, answer = ask(server, prompts[-1], vllm_xargs={"kv_policy": "full"})
    assert status == 200
    assert answer["choices"][0]["token_ids"] == HFReference(model).greedy(prompts[-1], 12)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"kv_budgt": 600}, "did you mean 'kv_budget'"),
        ({"kv_budget": 601}, "to 600 tokens on this server"),
        ({"kv_budget": "many"}, "whole number"),
        ({"kv_policy": "tangram"}, "must be 'full'"),
        ({"kv_level": 99}, "kv_level must be from 0 to"),
        ({"kv_windows": [1, 1, 1]}, "is not a KV option"),
    ],
    ids=str,
)
def test_bad_options_are_http_400(server: Server, extra: Any, sentence: str) -> None:
    for stream in (False, True):
        status, answer = ask(server, [5, 6, 7], vllm_xargs=extra, stream=stream)
        assert status == 400
        assert sentence in answer["error"]["message"]


def test_malformed_requests_are_refused_and_the_server_goes_on(server: Server) -> None:
    rng = random.Random(5)
    values: list[Any] = [
        None,
        True,
        -1,
        2**70,
        1.5,
        "",
        "full ",
        [],
        [1],
        ["a"],
        {"a": 1},
        "é" * 99,
    ]
    names = ("kv_budget", "kv_level", "kv_policy", "kv_budgets", "kv_windows", "KV_BUDGET ")
    for _ in range(100):
        xargs: Any = {rng.choice(names): rng.choice(values)}
        if rng.random() < 0.2:
            xargs = rng.choice([[], "kv_budget", 5, [xargs]])
        status, answer = ask(server, [5, 6, 7], vllm_xargs=xargs)
        # Names that are not ours, and values that ask for nothing, are let be.
        ours = isinstance(xargs, dict) and next(iter(xargs)).startswith("kv_")
        nothing = isinstance(xargs, dict) and next(iter(xargs.values())) is None
        assert status == 400 or (status == 200 and (not ours or nothing)), (xargs, answer)
        assert status == 200 or 10 < len(answer["error"]["message"]) < 1500
    assert ask(server, [5, 6, 7])[0] == 200


def test_a_client_that_is_killed_leaves_nothing(server: Server, prompts: list[list[int]]) -> None:
    body = {
        "model": SERVED_NAME,
        "prompt": prompts[-1],
        "max_tokens": 560,
        "ignore_eos": True,
        "stream": True,
    }
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, server.url, json.dumps(body)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline().startswith("data: ")
    assert held(server) >= 0
    for client in clients:
        client.send_signal(signal.SIGKILL)
        client.wait()
    expect_nothing_held(server)
    assert ask(server, [5, 6, 7])[0] == 200


def test_z_an_engine_that_is_killed_is_an_error_of_http(
    model: Path, plan: Plan, server: Server, prompts: list[list[int]], tmp_path: Path
) -> None:
    """The last test of this server: nobody may be left waiting for an answer, no process may stay,
    and a new server starts under the load that the old one left.

    The engine is stopped before it is killed, so that it cannot finish what it was asked.
    """
    assert server._process is not None
    children = psutil.Process(server._process.pid).children(recursive=True)
    engines = [p for p in children if any("EngineCore" in word for word in p.cmdline())]
    assert len(engines) == 1, [p.cmdline() for p in children]
    before = ask(server, prompts[2])
    body = {
        "prompt": prompts[1],
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.url, json.dumps({"model": SERVED_NAME, **body})],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert client.stdout is not None
    first = client.stdout.readline()
    assert first.startswith("data: ")
    engines[0].suspend()
    with ThreadPoolExecutor(4) as clients:
        waiting = [clients.submit(ask, server, prompts[1], max_tokens=570) for _ in range(4)]
        time.sleep(1)
        assert not wait(waiting, timeout=0).done, "answered by a stopped engine"
        engines[0].kill()
        assert not wait(waiting, timeout=60).not_done, "a client is left waiting"
        for answer in waiting:
            try:
                status, _ = answer.result()
            except (OSError, ValueError, HTTPException):  # the server has gone: an answer too
                continue
            assert status >= 500, status
    # Not communicate(): it would leave out what readline() has already taken into its buffer.
    streamed = first + client.stdout.read()
    client.wait(timeout=60)
    # The engine may have been ahead of what was sent: then the whole answer comes, and no less.
    if "[DONE]" in streamed and '"error"' not in streamed:
        events = [line for line in streamed.splitlines() if line.startswith("data: {")]
        choices = [c for line in events for c in json.loads(line[6:])["choices"]]
        assert sum(len(c["token_ids"] or ()) for c in choices) == 900, streamed[-500:]
    assert not psutil.wait_procs(children, timeout=60)[1], "a process outlives its server"
    too_few = plan.dense_bytes(MAX_LEN) // plan.block_bytes * 3 // 4
    small = new_server(model, tmp_path / "again.log", "--num-gpu-blocks-override", str(too_few))
    with small as again, ThreadPoolExecutor(4) as clients:
        load = [clients.submit(ask, again, prompt, max_tokens=100) for prompt in prompts[:4]]
        status, answer = ask(again, prompts[2])
        assert (status, answer["choices"][0]["token_ids"]) == (
            200,
            before[1]["choices"][0]["token_ids"],
        )
        assert [request.result()[0] for request in load] == [200] * 4
        long: Any = {"max_tokens": MAX_LEN - len(prompts[2])}
        assert ask(again, prompts[2], **long)[0] == 200
        for stream in (False, True):
            status, answer = ask(
                again, prompts[2], **long, vllm_xargs={"kv_policy": "full"}, stream=stream
            )
            assert status == 400
            assert "does not fit into the KV cache, even alone" in answer["error"]["message"]
        expect_nothing_held(again)
