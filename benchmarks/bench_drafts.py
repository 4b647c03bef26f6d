"""Speculative decoding with n-gram drafts under the policy: tokens per second with and without.

    python -m benchmarks.bench_drafts --json

Held-out passages of 1,500 tokens are to be repeated word for word, one request at a time: what
drafts are for. Both engines run eagerly under --kv-policy headaware. Tokens of a side are those of
its own greedy decoding: with a quantised KV cache they may part, since what several rows of a step
compute is off by a little from what one row does, and roundings follow. The last line on stdout is
one JSON object. Timings are only good on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from testbench.one_side import run_side
from testbench.server import DEMO
from testbench.small_requests import DRAFTS

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 6, 1500, 128


def measure(model: Path, drafts: bool) -> dict[str, Any]:
    """Greedy answers, seconds and engine steps after the first token of each."""
    from testbench.engine import SteppedEngine
    from vllm_headaware.tasks.given import make_given

    options: dict[str, Any] = {"speculative_config": DRAFTS} if drafts else {}
    engine = SteppedEngine(
        model, "headaware", max_model_len=2048, enforce_eager=True, max_num_seqs=2, **options
    )
    copies = make_given(
        engine.llm.get_tokenizer(),
        split="evaluation",
        count=PROMPTS,
        tokens=PROMPT_TOKENS,
        passage_tokens=NEW_TOKENS,
        copied_tokens=NEW_TOKENS,
        seed=3,
    )[2]
    answers, seconds, steps = [], 0.0, 0
    for number, one in enumerate(copies):
        engine.add(f"{number}", one.prompt, NEW_TOKENS)
        final: Any = None
        begin = time.perf_counter()
        for outputs in engine.run():
            if final is not None:
                seconds += time.perf_counter() - begin
                steps += 1
            begin = time.perf_counter()
            for output in outputs:
                final = output.outputs[0]
        answers.append(list(final.token_ids))
    return {"answers": answers, "seconds": seconds, "steps": steps}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and only that")
    parser.add_argument("--side", choices=["drafts", "plain"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.model, args.side == "drafts")), flush=True)
        return 0
    asked = ["--model", str(args.model), "--side"]
    sides = {
        side: run_side("benchmarks.bench_drafts", [*asked, side]) for side in ("plain", "drafts")
    }
    tokens = {name: sum(map(len, side["answers"])) - PROMPTS for name, side in sides.items()}
    speed = {name: tokens[name] / side["seconds"] for name, side in sides.items()}
    equal = sum(a == b for a, b in zip(*(side["answers"] for side in sides.values()), strict=True))
    result = {
        "speedup": speed["drafts"] / speed["plain"],
        "tokens_per_second": speed,
        "steps": {name: side["steps"] for name, side in sides.items()},
        "tokens": tokens,
        "equal_answers": equal,
        "prompts": PROMPTS,
    }
    if not args.json:
        print(
            f"{speed['drafts']:.1f} tokens/s with drafts, {speed['plain']:.1f} without;"
            f" {equal} of {PROMPTS} answers alike"
        )
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
