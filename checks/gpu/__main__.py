"""What an NVIDIA GPU makes of the policy, beside stock vLLM in the same run. JSON lines.

    python -m checks.gpu             on the GPU, within four minutes after imports
    python -m checks.gpu --dry-run   everything at tiny sizes in Triton's interpreter, without one

First that everything is right on the device, all at once, while what is timed later compiles its
kernels and imports; then the op and the engine, one after the other. What a late part would begin
after its time is left out, and said. The last line sums up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120
"""Most of one part."""
AT_ONCE = 8
"""Parts that are not timed, beside each other."""


@dataclass
class Part:
    """A process of the check.

    Attributes:
        timed: nothing else runs beside it.
        process: started already, having imported all it needs, and waiting for a line.
    """

    name: str
    command: list[str]
    timed: bool = True
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> subprocess.Popen[str]:
        """The process, which may have been started before."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        return self.process


def parts(dry: bool) -> list[Part]:
    """Every part, in order."""
    flag = ["--dry-run"] * dry

    def part(name: str, module: str, *more: str, timed: bool = True) -> Part:
        return Part(name, [sys.executable, "-m", f"checks.gpu.{module}", *more, *flag], timed)

    engines = [part(side, "engine", side, "--wait") for side in ("stock", "ours", "fp8")]
    found = [
        part("kernels agree", "cases", timed=False),
        part("replay", "replay", timed=False),
        part("tokens, eager", "tokens", "eager", timed=False),
        part("tokens, graphs", "tokens", "graphs", timed=False),
        part("compile decode", "op", "decode", "--compile", timed=False),
        part("compile prefill", "op", "prefill", "--compile", timed=False),
        part("decode", "op", "decode"),
        *engines,
        part("prefill", "op", "prefill"),
        part("turboquant", "engine", "turboquant", "--wait"),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer and not dry:
        once = part("sanitizer", "replay", "--once", timed=False)
        once.command[:0] = [sanitizer, "--error-exitcode", "9"]
        found.append(once)
    if dry:
        twice = ("fp8", "turboquant", "tokens, graphs", "compile decode", "compile prefill")
        found = [part for part in found if part.name not in twice]
    return found


def run(part: Part, patience: float, logs: Path | None) -> list[dict[str, Any]]:
    """Let a part go on and pass its JSON lines on as they come; the last tells how it ended."""
    begin = time.monotonic()
    process: Any = part.start()
    timer = threading.Timer(patience, process.kill)
    timer.start()
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr))
    reader.start()
    with contextlib.suppress(BrokenPipeError):  # how it ended is told below
        process.stdin.write("\n")
        process.stdin.close()
    lines = []
    for text in process.stdout:
        if text.startswith("{"):
            print(text, end="", flush=True)
            lines.append(json.loads(text))
    status = process.wait()
    timer.cancel()
    reader.join(5)
    if logs:
        file = logs / f"{part.name.replace(', ', '-').replace(' ', '-')}.log"
        file.write_text("".join(errors), encoding="utf-8")
    end = {"part": part.name, "exit": status, "seconds": round(time.monotonic() - begin, 1)}
    if status:
        end["error"] = "".join(errors)[-1500:]
    print(json.dumps(end), flush=True)
    return [*lines, end]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="without a GPU, at tiny sizes")
    parser.add_argument("--seconds", type=float, default=240, help="no part begins later")
    parser.add_argument("--logs", type=Path, help="folder for what the parts write besides")
    parser.add_argument("--only", action="append", help="a part; may be given again")
    args = parser.parse_args()
    import torch

    if not args.dry_run and not torch.cuda.is_available():
        print("no NVIDIA GPU is visible here: --dry-run needs none", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (interpreter)"
    print(json.dumps({"card": card, "torch": torch.__version__}), flush=True)
    begin, lines, left_out = time.monotonic(), [], []
    chosen = [p for p in parts(args.dry_run) if not args.only or p.name in args.only]
    timed = [part for part in chosen if part.timed]
    # The interpreter keeps a core busy by itself.
    with ThreadPoolExecutor(1 if args.dry_run else AT_ONCE) as pool:
        if not args.dry_run:
            for part in timed:
                if "--wait" in part.command:
                    part.start()
        untimed = [part for part in chosen if not part.timed]
        for found in pool.map(lambda part: run(part, PATIENCE_S, args.logs), untimed):
            lines += found
    for part in timed:
        left = args.seconds - (time.monotonic() - begin)
        if left <= 0 and not args.dry_run:
            left_out.append(part.name)
            if part.process:
                part.process.kill()
            continue
        patience = PATIENCE_S if args.dry_run else min(PATIENCE_S, left + 30)
        lines += run(part, patience, args.logs)
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
