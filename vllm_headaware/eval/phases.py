"""The three phases: memory against length, budgets, and what each part of the policy is worth."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.config.names import DTYPE_OPTIONS
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval.baselines import headaware_within, streamingllm_at
from vllm_headaware.eval.lineup import (
    Contender,
    by_plan,
    full_cache,
    heavy_hitters,
)
from vllm_headaware.eval.measure import NEW_TOKENS, Bench
from vllm_headaware.eval.quick import QUICK, TEXT_SCORED, TEXT_TOKENS
from vllm_headaware.eval.target import Target
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.plan.dtypes import native_dtypes
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.tasks.samples import make_samples
from vllm_headaware.tasks.text import text_windows

LENGTHS = (2000, 5000, 8000, 10000, 20000)
"""Prompts of phase 1, in tokens, as far as the model's positions go."""
LENGTHS_TASK = "single_needle"
BUDGETS = {2000: (512, 1024, 2048, 4096), 4000: (8192,)}
"""Budgets of phase 2 in tokens per layer, all KV heads together, by the prompts' length."""
BUDGET_TASKS = ("single_needle", "multi_key")
ABLATION_TOKENS = 1500
LONG = 3000
"""Prompts longer than this are dear: a third of the samples has to do."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model under test and sample sizes."""

    target: Target
    samples: int
    texts: int
    split: str
    seed: int

    def count(self, tokens: int) -> int:
        """Prompts of a length."""
        return self.samples if tokens <= LONG else max(self.samples // 3, 1)

    def fits(self, tokens: int) -> bool:
        """Whether the model has positions for a prompt and its answer."""
        return tokens + NEW_TOKENS <= self.target.geometry.max_model_len


Work = list[tuple[str, int, dict[str, Contender]]]
"""Task, prompt length in tokens, contenders by name."""


def lengths_work(subject: Subject, config: KVPolicyConfig) -> Work:
    """Phase 1: headaware grows with its retrieval heads, the baselines stay at its first bytes."""
    config = native_dtypes(config)
    lengths = [n for n in LENGTHS if subject.fits(n)]
    target = subject.target
    own = make_plan(config, target.geometry, target.profile.scores)
    first = streamingllm_at(own, config, lengths[0] + NEW_TOKENS)
    work: Work = []
    for tokens in lengths:
        total = tokens + NEW_TOKENS
        full = full_cache(target, total)
        contenders = [
            full,
            by_plan("headaware", own, target, total),
            by_plan("streamingllm", first, target, total),
            heavy_hitters(full, first, target, total),
        ]
        work.append((LENGTHS_TASK, tokens, {c.name: c for c in contenders}))
    return work


def budgets_work(subject: Subject) -> Work:
    """Phase 2: all methods within the bytes of so many tokens in every layer.

    The baselines deal a budget evenly to the KV heads of a layer. Local heads of headaware get a
    quarter of such a share as their window, and an eighth, up to 64 tokens, as sinks; as many heads
    as then fit keep everything. headaware is missing where none does.
    """
    target = subject.target
    work: Work = []
    for tokens, budgets in BUDGETS.items():
        if not subject.fits(tokens):
            continue
        total = tokens + NEW_TOKENS
        full = full_cache(target, total)
        contenders = {"full": full}
        for budget in budgets:
            share = budget // target.geometry.num_kv_heads
            sink = min(share // 8, QUICK.sink)
            config = dataclasses.replace(native_dtypes(QUICK), sink=sink, window=share // 4)
            options = KVPolicyConfig(
                "streamingllm",
                sink=sink,
                window=share - sink,
                prefill_window=config.prefill_window,
                local_dtype=config.local_dtype,
            )
            streaming = make_plan(options, target.geometry)
            held = streaming.request_bytes(total)
            try:
                own = headaware_within(held, config, target.geometry, target.profile, total)
                contenders[f"headaware {budget}"] = by_plan("headaware", own, target, total)
            except HeadAwareError:
                pass
            contenders |= {
                f"streamingllm {budget}": by_plan("streamingllm", streaming, target, total),
                f"h2o {budget}": heavy_hitters(full, streaming, target, total),
            }
        work += [(task, tokens, contenders) for task in BUDGET_TASKS]
    return work


def ablation_contenders(subject: Subject, num_tokens: int) -> dict[str, Contender]:
    """Phase 3: the policy put together part by part, and with each part taken away."""
    whole = native_dtypes(QUICK)
    target = subject.target
    geometry, profile = target.geometry, target.profile

    def plan(heads: HeadProfile = profile, dtype: str | None = None, **changes: Any) -> Plan:
        stored = {name: dtype for name in DTYPE_OPTIONS if dtype}
        return make_plan(
            dataclasses.replace(whole, **{**changes, **stored}), geometry, heads.scores
        )

    plans = {
        "+ classes": plan(dtype=geometry.kv_dtype),
        "+ k8v4 = headaware": plan(),
        "- classes (one window for all)": streamingllm_at(plan(), whole, num_tokens),
        "- ranking (heads by lot)": plan(by_lot(profile, subject.seed)),
        "- answers' gate (that of all rows)": plan(ranked_by(profile, "gate")),
        "- gate (ranked by copy score)": plan(ranked_by(profile, "copy")),
        "- sinks": plan(sink=0),
        "- wide windows (64)": plan(window=64),
        "- wider windows for prompts": plan(prefill_window=0),
        "- k8v4 (int4 instead)": plan(dtype="int4"),
        "with an induction class": plan(induction_share=0.125),
    }
    full = full_cache(target, num_tokens)
    return {
        "full": full,
        **{name: by_plan(name, p, target, num_tokens) for name, p in plans.items()},
    }


def by_lot(profile: HeadProfile, seed: int) -> HeadProfile:
    """The profile with its scores dealt to other heads."""
    heads = [
        (y, h) for y in range(profile.model.num_layers) for h in range(profile.model.num_kv_heads)
    ]
    dealt = random.Random(seed).sample(heads, len(heads))
    scores = {}
    for name, rows in profile.scores.items():
        values = iter(rows[y][h] for y, h in dealt)
        scores[name] = [[next(values) for _ in row] for row in rows]
    return dataclasses.replace(profile, scores=scores)


def ranked_by(profile: HeadProfile, score: str) -> HeadProfile:
    """The profile with one score in the place of all that rank heads."""
    ranking = dict.fromkeys(("gate", "answer"), profile.scores[score])
    return dataclasses.replace(profile, scores={**profile.scores, **ranking})


def runs_of(work: Work, subject: Subject) -> int:
    """How many runs run_work() counts on the bar."""
    return sum(len(contenders) * subject.count(tokens) for _, tokens, contenders in work)


def run_work(bench: Bench, subject: Subject, work: Work) -> list[dict[str, Any]]:
    """One row per task, length and contender: bytes and mean score."""
    rows = []
    for task, tokens, contenders in work:
        count = subject.count(tokens)
        samples = make_samples(
            bench.tokenizer,
            task,
            split=subject.split,
            count=count,
            tokens=tokens,
            seed=subject.seed,
        )
        scores = bench.score_task(contenders, samples)
        rows += [
            {
                "task": task,
                "tokens": tokens,
                "samples": count,
                "method": name,
                "bytes": contender.held_bytes,
                "bytes_ratio": contenders["full"].held_bytes / contender.held_bytes,
                "score": fmean(scores[name]),
            }
            for name, contender in contenders.items()
        ]
    return rows


def run_text(
    bench: Bench, subject: Subject, contenders: Mapping[str, Contender]
) -> list[dict[str, Any]]:
    """One row per contender: NLL and KL from full, in nats per token, on held-out text."""
    passages: Sequence[Sequence[int]] = text_windows(
        bench.tokenizer, split=subject.split, count=subject.texts, tokens=TEXT_TOKENS
    )
    nll, kl = bench.score_text(contenders, passages, TEXT_SCORED)
    return [{"method": n, "nll": fmean(nll[n]), "kl": fmean(kl[n])} for n in contenders]
