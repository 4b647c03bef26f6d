"""What budgets and their monitor cost the scheduler, as a share of the engine's step.

    python -m benchmarks.bench_scheduler --model DIR

64 requests decode at once, with metrics on. Every call into the policy on the scheduler's side is
timed: admission, windows, blocks that leave a window, the census; and on the worker's side the
windows of a step. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from checks.probe import random_prompt
from testbench.engine import SteppedEngine
from testbench.progress import say

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / ".cache" / "models" / "SmolLM2-135M-Instruct"
REQUESTS = 64
PROMPT_TOKENS = 200
STEPS = 60
LIMIT = 0.05


class Stopwatch:
    """Adds up the time spent in functions; a call inside another counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def time(self, owner: Any, name: str) -> None:
        """Time every call of owner.name from now on."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - start

        setattr(owner, name, timed)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEMO)
    args = parser.parse_args()
    engine = SteppedEngine(
        args.model,
        "headaware",
        enforce_eager=True,
        max_num_seqs=REQUESTS,
        disable_log_stats=False,
        max_model_len=2048,
    )
    from vllm_headaware.vllm_compat.engine_core import admission, census
    from vllm_headaware.vllm_compat.worker import v1

    budgets: Any = admission.budgets_of(engine._scheduler)
    watch = Stopwatch()
    for name in ("step", "look_up", "start", "forget"):
        watch.time(budgets, name)
    for manager in budgets.managers:
        watch.time(manager, "remove_skipped_blocks")
    watch.time(census.SchedulerLedger, "census")
    watch.time(v1, "_windows_of_step")

    # Half of the requests have windows of their own, so that every path is taken.
    for number in range(REQUESTS):
        extra = {"kv_level": 1} if number % 2 else None
        engine.add(f"r{number}", random_prompt(engine, PROMPT_TOKENS, number), 900, extra)
    started: dict[str, int] = {}
    while len(started) < REQUESTS:
        started.update(engine.step())
    say(f"{REQUESTS} requests are decoding")
    budgets.monitor.level = 1  # the monitor looks at the pool at every step
    steps, costs = [], []
    for _ in range(STEPS):
        watch.seconds = 0.0
        begin = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - begin)
        costs.append(watch.seconds)
    engine.abort(list(started))
    result = {
        "requests": REQUESTS,
        "step_seconds": statistics.median(steps),
        "cost_seconds": statistics.median(costs),
        "cost_seconds_with_census": max(costs),
        "share": sum(costs) / sum(steps),
        "limit": LIMIT,
    }
    print(json.dumps(result), flush=True)
    return 0 if result["share"] < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
