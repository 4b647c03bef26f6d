"""What the policy costs the scheduler, in microseconds a step, without a model.

    python -m benchmarks.bench_scheduler                a table
    python -m benchmarks.bench_scheduler --json         one JSON line a case, the last sums up

vLLM's real scheduler and block manager, in Llama-3.1-8B's geometry, with a runner that only says
which token came next; stock and policy in turns, each in a process of its own. All requests decode,
others wait in the queue and are looked up at every step, because the pool is just full.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from testbench.one_side import run_side

STEPS = 120
WAITING = 64
ANSWER = 2000
"""Most tokens of an answer; fewer are expected."""
CASES = ((64, 8192), (64, 32768), (256, 8192), (256, 32768), (1024, 8192), (1024, 32768))
CHUNK = 65536
"""Most tokens of a step; a few more requests than asked for fit in what their blocks take."""
GPU_STEP_SECONDS = 0.01
"""Of which the census takes its share: it is taken by the clock, not by the step."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON lines only")
    parser.add_argument("--case", action="append", metavar="REQUESTSxTOKENS", help="only this one")
    parser.add_argument("--side", choices=["stock", "headaware"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    cases = [tuple(map(int, case.split("x"))) for case in args.case or ()] or list(CASES)
    if args.side:
        print(json.dumps(measure(args.side == "headaware", *cases[0])), flush=True)
        return 0
    rows = []
    for requests, tokens in cases:
        sides = [_child(side, requests, tokens) for side in ("stock", "headaware")]
        stock, ours = sides
        row = {
            "requests": requests,
            "tokens": tokens,
            "stock_us": stock["step_us"],
            "headaware_us": ours["step_us"],
            "ratio": ours["step_us"] / stock["step_us"],
            "policy_us": ours["policy_us"],
            "census_us": ours["census_us"],
            "waiting": [stock["waiting"], ours["waiting"]],
        }
        rows.append(row)
        if args.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{requests:5} x {tokens:5}: stock {row['stock_us']:7.0f} us a step, headaware"
                f" {row['headaware_us']:7.0f} ({row['ratio']:.2f}), of that policy and monitor"
                f" {row['policy_us']:4.0f}; census {row['census_us']:4.0f}",
                flush=True,
            )
    by_case = {(row["requests"], row["tokens"]): row for row in rows}
    summary: dict[str, Any] = {"worst_ratio": max(row["ratio"] for row in rows)}
    if (256, 8192) in by_case and (256, 32768) in by_case:
        short, long = by_case[256, 8192], by_case[256, 32768]
        summary["policy_us_at_256x32k"] = long["policy_us"]
        summary["growth_8k_to_32k"] = long["policy_us"] / short["policy_us"]
    print(json.dumps(summary), flush=True)
    return 0


def _child(side: str, requests: int, tokens: int) -> dict[str, Any]:
    return run_side(
        "benchmarks.bench_scheduler",
        ["--side", side, "--case", f"{requests}x{tokens}"],
        {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr"},
    )


def measure(policy: bool, requests: int, tokens: int) -> dict[str, Any]:
    """One side of one case."""
    from testbench.bare_scheduler import BareScheduler
    from vllm_headaware.cache.growth import FIRST_GUESS

    def blocks(plan: Any) -> int:
        """What so many requests are expected to need, and no more."""
        if plan is None:
            grown = requests * tokens // CHUNK + 2 * STEPS
            return (-(-(tokens + grown) // 16) + 1) * requests
        held = sum(c.most_blocks(tokens + 2 * FIRST_GUESS, c.policy.window) for c in plan.classes)
        chunk = sum(-(-CHUNK // c.block_tokens) for c in plan.classes if c.policy.window)
        return held * requests + chunk + 64

    options: dict[str, Any] = {"kv_floor": 1.0} if policy else {}
    bare = BareScheduler(
        "headaware" if policy else None,
        tokens + ANSWER + 64,
        blocks=blocks,
        max_num_seqs=requests + WAITING,
        max_num_batched_tokens=CHUNK,
        **options,
    )
    scheduler, step = bare.scheduler, bare.step
    # Every prompt is of one token of its own, so that nobody hits the others' prefixes.
    for number in range(requests + WAITING):
        bare.add(f"r{number}", [number + 10] * tokens, ANSWER)
    started = 0
    while started < requests or any(r.num_output_tokens == 0 for r in scheduler.running):
        step()
        started = len(scheduler.running)
    for _ in range(10):
        step()
    times = []
    for _ in range(STEPS // 2):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    result = {
        # As if exactly so many ran as were asked for.
        "step_us": _mean(times) * 1e6 * requests / len(scheduler.running),
        "running": len(scheduler.running),
        "waiting": len(scheduler.waiting),
        "policy_us": 0.0,
        "census_us": 0.0,
    }
    if policy:
        result |= _policy_cost(scheduler, step)
    return result


def _policy_cost(scheduler: Any, step: Any) -> dict[str, float]:
    """Microseconds a step in the policy's own functions, without what vLLM does inside them."""
    from vllm_headaware.vllm_compat.engine_core import census
    from vllm_headaware.vllm_compat.engine_core.admission import budgets_of

    budgets: Any = budgets_of(scheduler)
    watch = Stopwatch()
    starts, find = budgets.starts, budgets.starts.look_up
    starts.look_up = watch.inside(lambda request, inner: find(request, watch.outside(inner)))
    for name in ("step", "start", "grew", "stop", "forget"):
        setattr(budgets, name, watch.inside(getattr(budgets, name)))
    costs = []
    for _ in range(STEPS // 2):
        watch.seconds = 0.0
        step()
        costs.append(watch.seconds)
    ledger = census.ledger_of(scheduler)
    assert ledger is not None
    begin = time.perf_counter()
    ledger.census(scheduler)
    each = time.perf_counter() - begin
    every = max(census.INTERVAL_SECONDS, each / census.COST_SHARE)
    return {
        "policy_us": _mean(costs) * 1e6,
        "census_us": each / every * GPU_STEP_SECONDS * 1e6,
    }


def _mean(values: list[float]) -> float:
    """Without the slowest twentieth: other processes' time."""
    return statistics.mean(sorted(values)[: -max(len(values) // 20, 1)])


class Stopwatch:
    """Adds up the time spent in functions, less that of others inside them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def inside(self, function: Any) -> Any:
        """A function whose time counts."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - begin

        return timed

    def outside(self, function: Any) -> Any:
        """A function whose time does not count where it is called inside another."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds -= time.perf_counter() - begin

        return timed


if __name__ == "__main__":
    sys.exit(main())
