"""The live page hangs on vLLM's app builder and asks for vLLM's API key."""

import inspect
from argparse import Namespace
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.observability.test_live import live
from tests.observability.test_metrics import CENSUS
from vllm_headaware.vllm_compat.front_end import routes

HEADS = "/headaware/heads.json"


def client(api_key: list[str] | None, metrics: object) -> TestClient:
    app = FastAPI()
    app.state.args = Namespace(api_key=api_key)
    app.state.engine_client = SimpleNamespace(
        logger_manager=SimpleNamespace(_headaware_metrics=metrics)
    )
    called = []
    routes._attach_endpoint_plugins(lambda *args: called.append(args), app, ("generate",))
    assert called == [(app, ("generate",))]
    return TestClient(app)


def test_either_key_opens_and_nothing_else() -> None:
    state = live()
    state.update(CENSUS, 0)
    server = client(["one", "two"], SimpleNamespace(live=state))
    for header, status in (
        ("Bearer one", 200),
        ("Bearer two", 200),
        ("Bearer three", 401),
        ("Basic one", 401),
        ("", 401),
    ):
        assert server.get(HEADS, headers={"Authorization": header}).status_code == status


def test_the_key_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "env")
    server = client(None, SimpleNamespace(live=live()))
    assert server.get(HEADS).status_code == 401
    assert server.get(HEADS, headers={"Authorization": "Bearer env"}).status_code == 200


def test_open_without_a_key_and_404_without_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert client(None, SimpleNamespace(live=live())).get(HEADS).status_code == 200
    assert client(None, None).get(HEADS).status_code == 404


def test_the_builder_calls_the_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    """build_app must look the name up when it runs, or the wrapper would never be called."""
    from vllm.entrypoints.launchers import app

    attach = inspect.unwrap(app.attach_endpoint_plugins)
    monkeypatch.setattr(app, "attach_endpoint_plugins", attach)
    routes._hook()
    assert app.attach_endpoint_plugins is not attach
    assert "attach_endpoint_plugins" in app.build_app.__code__.co_names
