"""Every case of the kernels against the float64 reference, on the device. Last line: JSON.

Run as `python -m checks.gpu.cases [--dry-run]`; --dry-run takes two of them, in the interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PROCESSES = max((os.cpu_count() or 1) - 2, 1)
DRY = ("three classes", "int8 in bfloat16, a window")


def run(names: str, device: str) -> dict[str, Any]:
    """Results of tests.kernels.triton_cases, by name; it says what `names` may be."""
    from tests.engine.child import MARK

    command = [sys.executable, "-m", "tests.kernels.triton_cases", names, device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (text,) = (line for line in done.stdout.splitlines() if line.startswith(MARK))
    return json.loads(text.removeprefix(MARK))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="two cases, in the interpreter")
    args = parser.parse_args()
    if args.dry_run:
        results = run(json.dumps(DRY), "cpu")
    else:
        # Most of the time goes to compiling, which every process does for itself.
        with ThreadPoolExecutor(PROCESSES) as pool:
            shares = [json.dumps([i, PROCESSES]) for i in range(PROCESSES)]
            parts = pool.map(run, shares, ["cuda"] * PROCESSES)
            results = {name: result for part in parts for name, result in part.items()}
    wrong = {name: result for name, result in results.items() if not result["ok"]}
    line = {"part": "kernels agree", "cases": len(results), "ok": not wrong, "wrong": wrong}
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
