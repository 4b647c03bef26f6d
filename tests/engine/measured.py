"""Head scores through vLLM, in one process: `python -m tests.engine.measured '{"model": ..., "ids":
[...], "once": [...], "rows": 9, "sink": 4, "window": 16, "engine": {...}}'`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from tests.engine.child import report


def main() -> None:
    """Report the scores by layer, and those of induction."""
    from vllm_headaware.vllm_compat.profiling.run import Engine

    asked = json.loads(sys.argv[1])
    ids, options = asked["ids"], {"dtype": "float32", **asked.get("engine", {})}
    engine = Engine(Path(asked["model"]), len(ids) + 1, 2**26, options)
    change = engine.change(ids, asked["rows"], asked["sink"], asked["window"])
    induction = engine.induction(asked["once"])
    report([{y: row.tolist() for y, row in of.items()} for of in (change, induction)])


if __name__ == "__main__":
    main()
