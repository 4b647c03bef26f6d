"""Build wheel and sdist, install the wheel in an empty environment, and let it answer.

    make dist

Everything the wheel asks for is installed anew (a few minutes). The last line is one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from testbench.progress import say
from testbench.server import DEMO
from testbench.wheel import ROOT, answer, empty_environment, install


def main() -> int:
    """Command line."""
    dist = ROOT / "dist"
    for old in dist.glob("vllm_headaware-*"):
        old.unlink()
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT)], check=True)
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("installing into an empty environment")
        python = empty_environment(folder / "venv", lend=False)
        install(python, wheel, lend=False)
        say("asking it")
        got = answer(python, DEMO, folder)
        inside = Path(got["package"]).is_relative_to(folder)
    ok = inside and len(got["tokens"]) == 8
    print(json.dumps({"ok": ok, "wheel": wheel.name, "sdist": sdist.name, **got}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
