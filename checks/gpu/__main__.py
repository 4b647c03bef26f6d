"""What an NVIDIA GPU makes of the policy, beside stock vLLM in the same run. JSON lines.

    python -m checks.gpu             on the GPU, within four minutes after imports
    python -m checks.gpu --dry-run   everything at tiny sizes in Triton's interpreter, without one

First that all kernels are right on the device, then the op, then the engine. What a late part would
begin after its time is left out, and said. The last line sums up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120
"""Most of one part."""


def parts(dry: bool) -> list[tuple[str, list[str]]]:
    """Name and command of every part, in order."""
    python, flag = [sys.executable, "-m"], ["--dry-run"] * dry
    found = [
        ("kernels agree", [*python, "checks.gpu.cases", *flag]),
        ("replay", [*python, "checks.gpu.replay", *flag]),
        ("tokens, eager", [*python, "checks.gpu.tokens", "eager", *flag]),
        ("tokens, graphs", [*python, "checks.gpu.tokens", "graphs", *flag]),
        ("decode", [*python, "checks.gpu.op", "decode", *flag]),
        *((side, [*python, "checks.gpu.engine", side, *flag]) for side in ("stock", "ours", "fp8")),
        ("prefill", [*python, "checks.gpu.op", "prefill", *flag]),
        ("turboquant", [*python, "checks.gpu.engine", "turboquant", *flag]),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer and not dry:
        once = [sanitizer, "--error-exitcode", "9", *python, "checks.gpu.replay", "--once"]
        found.append(("sanitizer", once))
    if dry:
        twice = ("fp8", "turboquant", "tokens, graphs")
        found = [part for part in found if part[0] not in twice]
    return found


def run(name: str, command: list[str], patience: float, logs: Path | None) -> list[dict[str, Any]]:
    """Run a part and pass its JSON lines on as they come; the last tells how it ended."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    timer = threading.Timer(patience, process.kill)
    timer.start()
    errors: list[str] = []
    outputs: Any = process.stdout, process.stderr
    reader = threading.Thread(target=lambda: errors.extend(outputs[1]))
    reader.start()
    lines = []
    for text in outputs[0]:
        if text.startswith("{"):
            print(text, end="", flush=True)
            lines.append(json.loads(text))
    status = process.wait()
    timer.cancel()
    reader.join(5)
    if logs:
        file = logs / f"{name.replace(', ', '-').replace(' ', '-')}.log"
        file.write_text("".join(errors), encoding="utf-8")
    end = {"part": name, "exit": status, "seconds": round(time.monotonic() - begin, 1)}
    if status:
        end["error"] = "".join(errors)[-1500:]
    print(json.dumps(end), flush=True)
    return [*lines, end]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="without a GPU, at tiny sizes")
    parser.add_argument("--seconds", type=float, default=240, help="no part begins later")
    parser.add_argument(
        "--logs", type=Path, help="keep what the parts write besides in this folder"
    )
    parser.add_argument("--only", action="append", help="a part; may be given again")
    args = parser.parse_args()
    import torch

    if not args.dry_run and not torch.cuda.is_available():
        print("no NVIDIA GPU is visible here: --dry-run needs none", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (interpreter)"
    print(json.dumps({"card": card, "torch": torch.__version__}), flush=True)
    begin, lines, left_out = time.monotonic(), [], []
    chosen = [p for p in parts(args.dry_run) if not args.only or p[0] in args.only]
    for name, command in chosen:
        left = args.seconds - (time.monotonic() - begin)
        if left <= 0 and not args.dry_run:
            left_out.append(name)
            continue
        patience = PATIENCE_S if args.dry_run else min(PATIENCE_S, left + 30)
        lines += run(name, command, patience, args.logs)
    failed = [line["part"] for line in lines if line.get("exit") or line.get("ok") is False]
    errors = sum("error" in line and "exit" not in line for line in lines)
    summary = {
        "ok": not failed,
        "card": card,
        "figures": sum("us" in x or "load" in x for x in lines),
    }
    summary |= {"failed": failed, "left_out": left_out, "peers_that_could_not_run": errors}
    print(json.dumps({**summary, "seconds": round(time.monotonic() - begin, 1)}))
    return 0 if not failed else 1


if __name__ == "__main__":
    sys.exit(main())
