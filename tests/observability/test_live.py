"""The live page's JSON: sums that agree, several engines and front ends, and the API key."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.observability.test_metrics import CENSUS
from tests.plan.test_plan import DEMO, plan_for
from vllm_headaware.cache.census import Census
from vllm_headaware.observability.http import add_routes
from vllm_headaware.observability.live import HISTORY_SECONDS, LiveState

PLAN = plan_for(DEMO)


def live(**options: Any) -> LiveState:
    return LiveState(PLAN, "m", "sha256:abc", **options)


def at(seconds: float, free: int = 80) -> Census:
    return dataclasses.replace(CENSUS, at=seconds, free=free, pending=81 - free)


def test_sums_agree() -> None:
    state = live()
    state.update(CENSUS, 0)
    state.update(CENSUS, 1)
    shown = state.heads()
    heads = sum(map(sum, shown["head_bytes"]))
    assert heads == pytest.approx(sum(c["bytes"] for c in shown["classes"]))
    assert heads + shown["pending_bytes"] == pytest.approx(shown["used_bytes"])
    assert shown["used_bytes"] == 2 * 20 * PLAN.block_bytes
    assert shown["dense_equivalent_bytes"] == 2 * PLAN.dense_bytes(1000)
    assert shown["engines"] == 2
    assert [request["tokens"] for request in shown["requests"]] == [700, 700]
    assert shown["requests"][0]["bytes"] == 8 * PLAN.block_bytes


def test_nothing_yet_is_a_page_of_zeros() -> None:
    shown = live().heads()
    assert shown["used_bytes"] == 0
    assert [len(row) for row in shown["head_bytes"]] == [3] * 30


def test_history_is_thin_and_ends() -> None:
    state = live()
    for tenth in range(10 * (HISTORY_SECONDS + 20)):
        state.update(at(tenth / 10), 0)
    history = state.heads()["history"]
    assert history[-1][0] - history[0][0] <= HISTORY_SECONDS
    assert HISTORY_SECONDS - 5 <= len(history) <= HISTORY_SECONDS + 1


def test_front_ends_know_what_others_saw(tmp_path: Path) -> None:
    first, second = live(shared=tmp_path), live(shared=tmp_path)
    second.name = "headaware-other.json"
    first.update(at(1.0, free=80), 0)
    second.update(at(3.0, free=70), 0)
    second.update(at(2.0, free=75), 1)
    for state in (first, second):
        shown = state.heads()
        assert shown["at"] == 3.0
        assert shown["used_bytes"] == (30 + 25) * PLAN.block_bytes
        assert [point[0] for point in shown["history"]] == [1.0, 2.0, 3.0]
        used = [point[1] / PLAN.block_bytes for point in shown["history"]]
        assert used == [20, 45, 55]


def client(state: LiveState | None, key: str | None = None) -> TestClient:
    app = FastAPI()
    header = f"Bearer {key}"
    add_routes(
        app,
        lambda request: state,
        lambda request: key is None or request.headers.get("Authorization") == header,
    )
    return TestClient(app)


def test_routes_answer() -> None:
    state = live()
    state.update(CENSUS, 0)
    server = client(state)
    assert server.get("/headaware").headers["content-type"].startswith("text/html")
    assert server.get("/headaware/heads.json").json() == state.heads()
    plan = server.get("/headaware/plan.json").json()
    assert plan["block_bytes"] == PLAN.block_bytes
    assert [c["heads"] for c in plan["classes"]] == [c.num_heads for c in PLAN.classes]


def test_json_needs_the_key_and_the_empty_page_does_not() -> None:
    server = client(live(), key="secret")
    for path in ("/headaware/heads.json", "/headaware/plan.json"):
        assert server.get(path).status_code == 401
        assert server.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert server.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert server.get("/headaware").status_code == 200


def test_without_a_policy_the_json_says_what_to_do() -> None:
    answer = client(None).get("/headaware/heads.json")
    assert answer.status_code == 404
    assert "--kv-policy" in answer.json()["detail"]
