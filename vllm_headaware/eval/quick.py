"""The quick comparison: what a model still knows under four methods that hold the same bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval.interval import relative_interval
from vllm_headaware.eval.lineup import METHODS, Contender, line_up
from vllm_headaware.eval.measure import NEW_TOKENS, Bench, open_bench
from vllm_headaware.eval.target import FULL_DTYPE, read_target
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.tasks.samples import make_samples
from vllm_headaware.tasks.text import text_windows

QUICK = KVPolicyConfig(
    "headaware",
    retrieval_share=0.25,
    induction_share=0.0,
    sink=64,
    window=256,
    prefill_window=2048,
)
"""Options that bite at these lengths, chosen on the calibration split; no induction class, whose
window would hold most of such prompts. Prompts of this length are read in full by all methods."""
TASK_TOKENS = {
    "single_needle": 1500,
    "multi_key": 1500,
    "multi_value": 1000,
    "variable_tracking": 1000,
    "common_words": 500,
}
"""Tasks of the quick comparison and their prompt lengths, as far as the demo model can do them."""
SAMPLES, TEXTS = 8, 2
SAMPLE_TOKENS = 1000
"""Tasks of shorter prompts get more of them: a short prompt is cheap, and eight are few."""
TEXT_TOKENS, TEXT_SCORED = 1500, 128
"""Length of a held-out text, and how many of its last tokens are scored."""
ABLE = 0.5
"""A task counts if the full cache scores at least this; below, nothing can be lost."""


def compare(
    model_dir: Path,
    config: KVPolicyConfig,
    profile: HeadProfile,
    *,
    tasks: Mapping[str, int] = TASK_TOKENS,
    samples: int = SAMPLES,
    texts: int = TEXTS,
    split: str = "evaluation",
    seed: int = 0,
    journal: Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Score all METHODS on generated tasks and on held-out text.

    Args:
        config: of the headaware policy; the baselines get at least the bytes of its plan.
        tasks: prompt length in tokens by task.
        samples: prompts per task of SAMPLE_TOKENS or more; see prompts_of().
        texts: held-out passages for perplexity and KL against the full cache.
        journal: file of finished runs, which are not run again; None keeps nothing.
        progress: show a bar on stderr; None means only on a terminal.

    Returns:
        Plain values: per task the score and bytes of every method, `relative` = headaware / full,
        `bytes_ratio` = full / headaware; for text NLL and KL in nats per token; and over the tasks
        the full cache can do the mean scores, their ratio and where chance puts it (see
        relative_interval()), and the ratio of the summed bytes.
    """
    started = time.monotonic()
    if samples < 1:
        raise HeadAwareError(f"samples must be at least 1, got {samples}")
    target = read_target(model_dir, profile)
    results: dict[str, Any] = {}
    text: dict[str, Any] = {}
    counts = {task: prompts_of(samples, tokens) for task, tokens in tasks.items()}
    runs = len(METHODS) * (sum(counts.values()) + texts)
    with open_bench(model_dir, journal, runs=runs, progress=progress) as bench:
        for task, tokens in tasks.items():
            prompts = make_samples(
                bench.tokenizer, task, split=split, count=counts[task], tokens=tokens, seed=seed
            )
            contenders = line_up(config, target, tokens + NEW_TOKENS)
            per_sample = bench.score_task(contenders, prompts)
            results[task] = {
                "tokens": tokens,
                "samples": counts[task],
                "scores": {name: fmean(got) for name, got in per_sample.items()},
                "per_prompt": per_sample,
                **held(contenders),
            }
        if texts:
            text = score_texts(bench, line_up(config, target, TEXT_TOKENS), split, texts)
    return {
        "model": profile.model.name,
        "split": split,
        "seed": seed,
        "kv": {name: getattr(config, name) for name in config.options},
        "full_dtype": FULL_DTYPE,
        "tasks": results,
        "text": text,
        **summary(results),
        "seconds": round(time.monotonic() - started, 1),
    }


def prompts_of(samples: int, tokens: int) -> int:
    """How many prompts of a length are asked where longer ones get `samples`: up to thrice that."""
    return min(max(samples, samples * SAMPLE_TOKENS // tokens), 3 * samples)


def held(contenders: Mapping[str, Contender]) -> dict[str, Any]:
    """Bytes by contender, while decoding and while reading; how many times fewer headaware holds
    while decoding than full; h2o's tokens."""
    held_bytes = {name: c.held_bytes for name, c in contenders.items()}
    return {
        "bytes": held_bytes,
        "reading_bytes": {name: c.reading_bytes for name, c in contenders.items()},
        "bytes_ratio": held_bytes["full"] / held_bytes["headaware"],
        "baseline_tokens": contenders["h2o"].options["budget"],
    }


def score_texts(
    bench: Bench, contenders: Mapping[str, Contender], split: str, count: int
) -> dict[str, Any]:
    """NLL and KL of full to each contender, in nats per token, mean over held-out passages."""
    passages = text_windows(bench.tokenizer, split=split, count=count, tokens=TEXT_TOKENS)
    nll, kl = bench.score_text(contenders, passages, TEXT_SCORED)
    return {
        "tokens": TEXT_TOKENS,
        "scored": TEXT_SCORED,
        "passages": count,
        "nll": {name: fmean(values) for name, values in nll.items()},
        "kl": {name: fmean(values) for name, values in kl.items()},
        **held(contenders),
    }


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Means over the tasks the full cache can do, and where a baseline is ahead of headaware.

    Adds `relative` to every task; it is None where the full cache scores nothing.
    """
    for result in results.values():
        full, own = result["scores"]["full"], result["scores"]["headaware"]
        result["relative"] = own / full if full else None
    able = [task for task, result in results.items() if result["scores"]["full"] >= ABLE]

    def scores(task: str) -> dict[str, float]:
        return results[task]["scores"]

    def ratio(count: str) -> float:
        totals = [sum(results[t][count][n] for t in able or results) for n in METHODS[:2]]
        return totals[0] / totals[1]

    pairs = [tuple(results[t]["per_prompt"][m] for m in ("headaware", "full")) for t in able]
    mean = {m: fmean(scores(t)[m] for t in able) if able else None for m in METHODS}
    full, own = mean["full"], mean["headaware"]
    return {
        "unable": sorted(set(results) - set(able)),
        "scores": mean,
        "relative": own / full if own is not None and full else None,
        "relative_interval": relative_interval(pairs),
        "bytes_ratio": ratio("bytes"),
        "reading_bytes_ratio": ratio("reading_bytes"),
        "baselines_ahead": {
            name: [t for t in able if scores(t)[name] > scores(t)["headaware"]]
            for name in METHODS[2:]
        },
    }
