"""The engine's tokens on the device against the plain-torch reference. Last line: JSON.

Run as `python -m checks.gpu.tokens eager|graphs [--dry-run]`: a tiny random Llama in float32,
prompts read in chunks; `graphs` as users run it, compiled and with CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["eager", "graphs"])
    parser.add_argument("--dry-run", action="store_true", help="short prompts, in the interpreter")
    args = parser.parse_args()
    if args.dry_run:
        from testbench.triton_interpreter import enable

        enable(runner=True)
    import vllm_headaware.plugin
    from checks.families import FEW_PROMPTS, PROMPTS, TRITON_HEADS, judge, prepare, serve
    from testbench.families import FAMILIES

    vllm_headaware.plugin.register()
    prepare()
    more = {} if args.dry_run else {"gpu_memory_utilization": 0.1}
    with tempfile.TemporaryDirectory() as folder:
        answers, plan = serve(
            Path(folder),
            {**FAMILIES["Llama"], **TRITON_HEADS},
            FEW_PROMPTS if args.dry_run else PROMPTS,
            enforce_eager=args.dry_run or args.mode == "eager",
            **more,
        )
        judged = judge(Path(folder), answers, plan)
    line = {"part": "tokens", "mode": args.mode, **judged, "ok": not judged["mismatches"]}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
