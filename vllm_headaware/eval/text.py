"""Held-out natural text: Newton's Opticks (1730, public domain), which every vLLM install carries
inside the apache-tvm-ffi package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from vllm_headaware.errors import HeadAwareError

PACKAGE = "apache-tvm-ffi"
NAME = "Isaac.Newton-Opticks.txt"


def held_out_text() -> str:
    """The whole text; profiles are never measured on it.

    Raises:
        HeadAwareError: the package that carries it is not installed.
    """
    try:
        found = [file for file in files(PACKAGE) or () if file.name == NAME]
    except PackageNotFoundError:
        found = []
    if not found:
        raise HeadAwareError(
            f"no held-out text: {NAME} comes with the package {PACKAGE}, which is not installed"
        )
    return Path(str(found[0].locate())).read_text(encoding="utf-8", errors="replace")
