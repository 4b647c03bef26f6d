"""Fidelity in the real engine: right answers, forced token by token, beside the full cache.

Nothing is masked: every contender is vLLM itself, with a policy or without, and the bytes are those
of the blocks that a request holds.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vllm_headaware import __version__
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval.interval import relative_interval
from vllm_headaware.eval.journal import Journal, key_of
from vllm_headaware.eval.quick import ABLE
from vllm_headaware.plan import make_plan
from vllm_headaware.plan.geometry import read_geometry
from vllm_headaware.tasks.given import Given
from vllm_headaware.tasks.long import LONG_ANSWER, longest_answer, make_long

QUICK = ("needles", "multi_key", "trails_2", "tables", "second_turn", "text", "code", "copies")
QUICK_LENGTHS = (2000, 4000)
BITS = {"float32": 32}
SPARE = 8
"""Tokens that a model's limit must have room for besides a prompt and its answer."""
ROOM, SPARE_BLOCK = 2, 256
"""Requests of the greatest length that the pool holds in full: the one that runs, and what is left
of an earlier turn; and tokens of each that a last block may take in vain."""


@dataclass(frozen=True)
class Side:
    """A contender.

    Attributes:
        options: arguments of vllm.LLM, of the policy; none for stock vLLM.
    """

    name: str
    options: Mapping[str, Any]


def lengths_of(most: int, kinds: Sequence[str]) -> tuple[int, ...]:
    """A quarter, a half and nearly all of a model's limit, with room for every answer.

    Args:
        most: tokens of the model's longest request.
    """
    room = most - max(map(longest_answer, kinds)) - SPARE
    return tuple(sorted({most // 4, most // 2, room}))


def compare(
    model: Path,
    digest: str,
    tokenizer: Any,
    sides: Sequence[Side],
    *,
    kinds: Sequence[str],
    lengths: Sequence[int],
    count: int,
    split: str,
    seed: int,
    dtype: str,
    journal: Path | None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Give every contender every prompt with its answer.

    Args:
        digest: of the model, for the journal.
        sides: the first is the full cache.
        lengths: tokens of prompts.
        count: prompts of each kind and length.
        dtype: of the engine.
        progress: show a bar on stderr; None means only on a terminal.

    Raises:
        HeadAwareError: kinds or lengths that cannot be asked; an engine that failed.
    """
    from tqdm import tqdm

    started = time.monotonic()
    prompts = [
        given
        for tokens in lengths
        for given in make_long(tokenizer, kinds, split=split, count=count, tokens=tokens, seed=seed)
    ]
    longest = max(len(one.prompt) + len(one.answer) for one in prompts) + SPARE
    whole = make_plan(KVPolicyConfig("full"), read_geometry(model, dtype, longest))
    room = ROOM * (longest + SPARE_BLOCK)
    common = {
        "dtype": dtype,
        "max_model_len": longest,
        "enforce_eager": True,
        "kv_cache_memory_bytes": whole.dense_bytes(room, room),
    }
    kept = Journal(journal)
    rows: dict[str, list[dict[str, Any]]] = {}
    hidden = None if progress is None else not progress
    with tqdm(total=len(sides) * len(prompts), unit="run", disable=hidden) as bar:
        for side in sides:
            bar.set_description(side.name)
            options = {**common, **side.options}
            keys = [key_of("long", __version__, digest, options, asdict(one)) for one in prompts]
            open_ones = [i for i, key in enumerate(keys) if kept.get(key) is None]
            bar.update(len(prompts) - len(open_ones))
            answers = serve(model, options, [prompts[i] for i in open_ones]) if open_ones else ()
            for i, result in zip(open_ones, answers, strict=True):
                kept.put(keys[i], result)
                bar.update()
            rows[side.name] = [kept.get(key) for key in keys]
    return {
        "split": split,
        "seed": seed,
        "dtype": dtype,
        "lengths": list(lengths),
        "prompts_of_a_kind": count * len(lengths),
        "sides": {side.name: dict(side.options) for side in sides},
        **conclude(prompts, rows, BITS.get(dtype, 16)),
        "seconds": round(time.monotonic() - started, 1),
    }


def serve(
    model: Path, options: Mapping[str, Any], prompts: Sequence[Given]
) -> Iterator[dict[str, Any]]:
    """An engine's results, one for each prompt as they come.

    Raises:
        HeadAwareError: it ended before the last.
    """
    asked = [{"prompt": one.prompt, "answer": one.answer, "before": one.before} for one in prompts]
    process: Any = subprocess.Popen(
        [sys.executable, "-m", "vllm_headaware.eval.long_side"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        json.dump({"model": str(model), "options": dict(options), "prompts": asked}, process.stdin)
        process.stdin.close()
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise HeadAwareError(
            f"the engine with {json.dumps(dict(options))} ended with status {process.returncode};"
            " what it said is above"
        )


def conclude(
    prompts: Sequence[Given], rows: Mapping[str, Sequence[Mapping[str, Any]]], bits: int
) -> dict[str, Any]:
    """Means by kind and over the kinds that the full cache can do.

    Args:
        rows: by side, what long_side says of each prompt; the full cache first.
        bits: of an element of the full cache.

    Returns:
        kinds: by kind and side the mean loss in nats per token, how much more than the full cache's
        it is, the share of first choices, of answers that greedy decoding would give in full, KL
        from the full cache in nats where both rank a token, and bytes; of long answers also
        `drift`, the loss beyond the full cache's in the last quarter less that in the first.
        scores: by side the mean share of first choices over able kinds, that relative to full's,
        its interval, bytes, and how many times fewer than a full cache's in 16 bit.
    """
    full = next(iter(rows))
    kinds: dict[str, Any] = {}
    for kind in dict.fromkeys(one.kind for one in prompts):
        places = [i for i, one in enumerate(prompts) if one.kind == kind]
        kinds[kind] = {
            name: _of_kind([own[i] for i in places], [rows[full][i] for i in places], kind)
            for name, own in rows.items()
        }
    able = [kind for kind, of in kinds.items() if of[full]["first"] >= ABLE]
    sides = {}
    for name in rows:
        score, best = (
            fmean(kinds[kind][one]["first"] for kind in able) if able else 0.0
            for one in (name, full)
        )
        pairs = [tuple(kinds[k][n]["per_prompt"] for n in (name, full)) for k in able]
        sides[name] = {
            "score": score if able else None,
            "relative": score / best if able else None,
            "relative_interval": relative_interval(pairs) if able else None,
            "bytes": fmean(row["bytes"] for row in rows[name]),
            "fewer_than_16_bit": fmean(row["bytes"] for row in rows[full])
            * 16
            / bits
            / fmean(row["bytes"] for row in rows[name]),
        }
    return {"kinds": kinds, "unable": sorted(set(kinds) - set(able)), "scores": sides}


def _of_kind(
    own: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]], kind: str
) -> dict[str, Any]:
    loss, best = (fmean(fmean(row["losses"]) for row in side) for side in (own, full))
    firsts = [fmean(rank == 1 for rank in row["ranks"]) for row in own]
    result = {
        "loss": loss,
        "lost": loss - best,
        "first": fmean(firsts),
        "exact": fmean(all(rank == 1 for rank in row["ranks"]) for row in own),
        "kl": fmean(_divergence(a["tops"], b["tops"]) for a, b in zip(full, own, strict=True)),
        "bytes": fmean(row["bytes"] for row in own),
        "per_prompt": firsts,
    }
    if kind == LONG_ANSWER:
        result["drift"] = fmean(
            _drift(a["losses"], b["losses"]) for a, b in zip(own, full, strict=True)
        )
    return result


def _divergence(full: Sequence[Mapping[str, float]], own: Sequence[Mapping[str, float]]) -> float:
    return fmean(
        sum(math.exp(p) * (p - there[token]) for token, p in here.items() if token in there)
        for here, there in zip(full, own, strict=True)
    )


def _drift(own: Sequence[float], full: Sequence[float]) -> float:
    quarter = len(own) // 4
    more = [a - b for a, b in zip(own, full, strict=True)]
    return fmean(more[-quarter:]) - fmean(more[:quarter])
