"""What answers lose under the policy, in the real engine: right answers given token by token.

    python -m checks.losses --model DIR               the default against stock vLLM
    python -m checks.losses --kv prefill_window=2048  with a field of the policy changed

Held-out prompts: text and code that go on, a passage that is copied after a gap, trails, needles.
Every answer is forced, so both sides see the same tokens; a loss is the mean negative log
probability of its tokens, in nats. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from testbench.one_side import run_side
from testbench.progress import say
from testbench.server import DEMO
from vllm_headaware.tasks.given import Given, make_given

ANSWER = 192
COPIED = 96
"""Tokens of answers that go on, and of those that repeat."""
LENGTHS = (4000, 7600)
COUNT = 3
"""Prompts of each kind and length."""
SEED = 7
LIMITS = {"text": 0.01, "code": 0.01, "copies": 0.05}
"""Largest mean loss against stock."""


def make_prompts(tokenizer: Any) -> list[Given]:
    """All prompts, alike for every engine."""
    return [
        one
        for length in LENGTHS
        for kind in make_given(
            tokenizer,
            split="evaluation",
            count=COUNT,
            tokens=length,
            passage_tokens=ANSWER,
            copied_tokens=COPIED,
            seed=SEED,
        )
        for one in kind
    ]


def measure(model: Path, policy: str | None, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss and share of first choices of every answer, in an engine of this process."""
    from testbench.engine import SteppedEngine
    from vllm_headaware.eval.forced import KEY, Forced

    engine = SteppedEngine(model, policy, logits_processors=[Forced], **options)
    rows = []
    given = make_prompts(engine.llm.get_tokenizer())
    for number, one in enumerate(given):
        engine.add(f"{number}", one.prompt, len(one.answer), {KEY: one.answer}, logprobs=1)
        final: Any = None
        for outputs in engine.run():
            for output in outputs:
                final = output.outputs[0]
        assert list(final.token_ids) == one.answer, "what is said is laid down"
        found = [row[token] for row, token in zip(final.logprobs, one.answer, strict=True)]
        rows.append(
            {
                "kind": one.kind,
                "tokens": len(one.prompt),
                "loss": -statistics.fmean(entry.logprob for entry in found),
                "first": statistics.fmean(entry.rank == 1 for entry in found),
            }
        )
        say(
            f"{policy or 'stock'}: {number + 1} of {len(given)}, {one.kind}, {rows[-1]['loss']:.3f}"
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    from checks.probe import policy_option

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder")
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument("--kv", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--side", choices=["stock", "policy"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        options = dict(map(policy_option, args.kv)) if args.side == "policy" else {}
        policy = args.kv_policy if args.side == "policy" else None
        print(json.dumps(measure(args.model, policy, options)), flush=True)
        return 0
    sides: dict[str, list[dict[str, Any]]] = {}
    for side in ("policy", "stock"):
        asked = ["--side", side, "--model", str(args.model), "--kv-policy", args.kv_policy]
        asked += [part for field in args.kv for part in ("--kv", field)]
        sides[side] = run_side("checks.losses", asked)
    result = conclude(sides)
    for kind, row in result["kinds"].items():
        say(
            f"{kind:8} loss {row['stock']:.3f} with stock, {row['policy']:.3f} with the policy"
            f" ({row['lost']:+.4f}); first choices {row['first_stock']:.2f}, {row['first']:.2f}"
        )
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


def conclude(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means by kind, and whether they are within LIMITS; needles must lose no first choice."""
    pairs = defaultdict(list)
    for ours, stock in zip(sides["policy"], sides["stock"], strict=True):
        pairs[ours["kind"]].append((ours, stock))
    kinds = {}
    for kind, both in pairs.items():
        mean = {
            (side, what): statistics.fmean(pair[side][what] for pair in both)
            for side in (0, 1)
            for what in ("loss", "first")
        }
        kinds[kind] = {
            "prompts": len(both),
            "policy": mean[0, "loss"],
            "stock": mean[1, "loss"],
            "lost": mean[0, "loss"] - mean[1, "loss"],
            "first": mean[0, "first"],
            "first_stock": mean[1, "first"],
        }
    claims = {
        f"{kind} loses at most {limit} nats": kinds[kind]["lost"] <= limit
        for kind, limit in LIMITS.items()
    }
    claims["needles are found as often"] = (
        kinds["needles"]["first"] >= kinds["needles"]["first_stock"]
    )
    return {"kinds": kinds, "rows": sides, "claims": claims, "ok": all(claims.values())}


if __name__ == "__main__":
    sys.exit(main())
