"""What moved in a vLLM against what this package touches.

python -m tools.contract                        the installed vLLM
python -m tools.contract --newest               the newest CUDA wheel of the package registry
python -m tools.contract --wheel FILE           a wheel that is here already
python -m tools.contract --newest --write       keep what was found as tested
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from testbench.progress import say
from vllm_headaware.vllm_compat import contract

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "vllm-source"


def newest_source(version: str | None = None) -> tuple[str, Path]:
    """Version and folder of `vllm` in a wheel of the registry, the newest if none is named.

    Raises:
        subprocess.CalledProcessError: the registry has none or cannot be reached.
    """
    if version and (CACHE / version / "vllm").exists():
        return version, CACHE / version / "vllm"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        say("downloading the wheel (some 340 MB)")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--no-cache-dir", "--platform=manylinux_2_28_x86_64"),
                *("--platform=manylinux_2_31_x86_64", "--dest", folder),
                f"vllm=={version}" if version else "vllm",
            ],
            check=True,
        )
        (wheel,) = Path(folder).glob("*.whl")
        return unpack(wheel)


def unpack(wheel: Path) -> tuple[str, Path]:
    """Version and folder of `vllm` in a wheel; only its Python files are kept."""
    named = re.match(r"vllm-([0-9.]+)-", wheel.name)
    if named is None:
        raise SystemExit(f"{wheel} is not a wheel of vLLM")
    with zipfile.ZipFile(wheel) as archive:
        python = [name for name in archive.namelist() if name.endswith(".py")]
        archive.extractall(CACHE / named[1], python)
    return named[1], CACHE / named[1] / "vllm"


def main() -> int:
    """Command line; exit status 1 when something is gone or has another signature."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--newest", action="store_true", help="look at the newest wheel")
    parser.add_argument("--wheel", type=Path, help="look at this wheel")
    parser.add_argument("--write", action="store_true", help="keep what was found as tested")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.wheel:
        version, folder = unpack(args.wheel)
    elif args.newest:
        version, folder = newest_source()
    else:
        version, folder = contract.vllm_version(), contract.vllm_folder()
    found = contract.read_symbols(folder)
    known = contract.known_versions() if contract.KNOWN.exists() else {}
    if args.write:
        known[version] = {name: list(what) for name, what in found.items()}
        contract.KNOWN.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    states = contract.compare(found, known)
    moved = [state for state in states if state.state != contract.AS_TESTED]
    if args.json:
        states_json = {state.symbol: state.state for state in states}
        print(json.dumps({"version": version, "symbols": states_json}))
    else:
        for state in moved:
            print(f"{state.state:18} {state.symbol}  ({state.by})")
        print(f"vLLM {version}: {len(states)} symbols, {len(moved)} not as tested")
    return int(any(s.state in (contract.GONE, contract.SIGNATURE) for s in moved))


if __name__ == "__main__":
    sys.exit(main())
