"""The package as users get it: a wheel, installed where nothing of this checkout is in reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ANSWER = """
import json, sys
from vllm import LLM, SamplingParams
import vllm_headaware

if __name__ == "__main__":
    llm = LLM(sys.argv[1], kv_policy="streamingllm", kv_window=64, dtype="float32",
              max_model_len=512, enforce_eager=True)
    out = llm.generate(
        [{"prompt_token_ids": [7 + i % 200 for i in range(300)]}],
        SamplingParams(max_tokens=8, temperature=0, ignore_eos=True), use_tqdm=False)
    print("ANSWER", json.dumps(
        {"tokens": list(out[0].outputs[0].token_ids), "package": vllm_headaware.__file__}))
"""


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout.

    Raises:
        subprocess.CalledProcessError: it does not build.
    """
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def empty_environment(folder: Path, lend: bool) -> Path:
    """A new virtual environment; returns its python.

    Args:
        lend: let it see what is installed here, but for this package: its dependencies are there
            without being downloaded once more.
    """
    venv.create(folder, with_pip=True)
    if lend:
        (site,) = folder.glob("lib/python*/site-packages")
        here = Path(next(p for p in sys.path if p.endswith("site-packages")))
        for entry in here.iterdir():
            if "headaware" not in entry.name and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def install(python: Path, wheel: Path, lend: bool) -> None:
    """Install a wheel for CPUs; with everything it asks for unless that is lent."""
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    if lend:
        subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
        return
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, f"{wheel}[cpu]"], check=True)
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if subprocess.run([str(python), "-c", f"import {name}"], capture_output=True).returncode:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--yes", name], check=True)


def answer(python: Path, model: Path, folder: Path) -> Any:
    """What the installed package answers with a policy on, and where it was imported from."""
    script = folder / "answer.py"
    script.write_text(ANSWER, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(script), str(model)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**environment, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    if not lines:
        raise RuntimeError(f"no answer ({done.returncode}): {done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("ANSWER "))
