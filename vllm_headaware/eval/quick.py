"""The quick comparison: what a model still knows under four methods that hold the same bytes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval.baselines import streamingllm_at, tokens_per_head
from vllm_headaware.eval.methods import ByRule, HeavyHitters, Method
from vllm_headaware.eval.runner import continuation_logprobs, generate
from vllm_headaware.eval.tasks import make_samples, score
from vllm_headaware.eval.text import text_windows
from vllm_headaware.geometry import ModelGeometry, read_geometry
from vllm_headaware.plan import make_plan
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.run import load_model

METHODS = ("full", "headaware", "streamingllm", "h2o")
QUICK = KVPolicyConfig(
    "headaware",
    retrieval_share=0.2,
    induction_share=0.0,
    sink=32,
    window=64,
    induction_window=256,
)
"""Options that bite at these lengths; chosen on the calibration split."""
TASK_TOKENS = {"single_needle": 1500, "multi_key": 1500, "common_words": 500}
"""Tasks of the quick comparison and their prompt lengths, as far as the demo model can do them."""
NEW_TOKENS = 12
"""Room for the rest of an answer that was begun for the model."""
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
    samples: int = 5,
    texts: int = 2,
    split: str = "evaluation",
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Score all METHODS on generated tasks and on held-out text.

    Args:
        config: of the headaware policy; the baselines get at least the bytes of its plan.
        tasks: prompt length in tokens by task.
        samples: prompts per task.
        texts: held-out passages for perplexity and KL against the full cache.
        progress: show a bar on stderr; None means only on a terminal.

    Returns:
        Plain values: per task the score and bytes of every method, `relative` = headaware / full,
        `bytes_ratio` = full / headaware; for text NLL and KL in nats per token; and means over the
        tasks the full cache can do.
    """
    started = time.monotonic()
    if samples < 1:
        raise HeadAwareError(f"samples must be at least 1, got {samples}")
    geometry = read_geometry(model_dir, "float32")
    model, tokenizer = load_model(model_dir)
    bar = tqdm(
        total=len(METHODS) * (samples * len(tasks) + texts),
        desc="evaluating",
        unit="run",
        file=sys.stderr,
        disable=not sys.stderr.isatty() if progress is None else not progress,
    )
    results: dict[str, Any] = {}
    with bar:
        for task, tokens in tasks.items():
            prompts = make_samples(
                tokenizer, task, split=split, count=samples, tokens=tokens, seed=seed
            )
            methods, held = methods_at(config, geometry, profile, tokens + NEW_TOKENS)
            scores: dict[str, float] = {}
            for name, method in methods.items():
                got = []
                for sample in prompts:
                    ids = generate(model, method, sample.prompt_token_ids, NEW_TOKENS)
                    got.append(score(sample, tokenizer.decode(ids)))
                    bar.update()
                scores[name] = sum(got) / len(got)
            results[task] = {"tokens": tokens, "samples": samples, "scores": scores, **held}
        text = _text(model, tokenizer, config, geometry, profile, split, texts, bar)

    able = [task for task, result in results.items() if result["scores"]["full"] >= ABLE]
    for result in results.values():
        full, own = result["scores"]["full"], result["scores"]["headaware"]
        result["relative"] = own / full if full else None
    mean = {m: _mean([results[t]["scores"][m] for t in able]) for m in METHODS}
    return {
        "model": profile.model.name,
        "split": split,
        "seed": seed,
        "kv": {name: getattr(config, name) for name in config.options},
        "tasks": results,
        "text": text,
        "unable": sorted(set(results) - set(able)),
        "scores": mean,
        "relative": mean["headaware"] / mean["full"] if able else None,
        "bytes_ratio": min(r["bytes_ratio"] for r in results.values()),
        "seconds": round(time.monotonic() - started, 1),
    }


def methods_at(
    config: KVPolicyConfig, geometry: ModelGeometry, profile: HeadProfile, num_tokens: int
) -> tuple[dict[str, Method], dict[str, Any]]:
    """All METHODS for requests of num_tokens, and the bytes each holds."""
    full = make_plan(KVPolicyConfig("full"), geometry)
    own = make_plan(config, geometry, profile)
    streaming = streamingllm_at(own, config, num_tokens)
    budget = tokens_per_head(streaming, num_tokens)
    methods: dict[str, Method] = {
        "full": ByRule(full),
        "headaware": ByRule(own),
        "streamingllm": ByRule(streaming),
        "h2o": HeavyHitters(budget, streaming.classes[0].policy.dtype),
    }
    dense = full.dense_bytes(num_tokens)
    baseline = streaming.request_bytes(num_tokens)
    held = {
        "bytes": {
            "full": dense,
            "headaware": own.request_bytes(num_tokens),
            "streamingllm": baseline,
            "h2o": baseline,
        },
        "bytes_ratio": dense / own.request_bytes(num_tokens),
        "streamingllm_window": streaming.classes[0].policy.window,
        "h2o_budget": budget,
    }
    return methods, held


def _text(
    model: Any,
    tokenizer: Any,
    config: KVPolicyConfig,
    geometry: ModelGeometry,
    profile: HeadProfile,
    split: str,
    count: int,
    bar: tqdm,
) -> dict[str, Any]:
    """NLL, and KL of full to each method, in nats per token over the end of held-out passages."""
    if not count:
        return {}
    methods, held = methods_at(config, geometry, profile, TEXT_TOKENS)
    nll: dict[str, list[float]] = {name: [] for name in METHODS}
    kl: dict[str, list[float]] = {name: [] for name in METHODS}
    for ids in text_windows(tokenizer, split=split, count=count, tokens=TEXT_TOKENS):
        prompt, rest = ids[:-TEXT_SCORED], ids[-TEXT_SCORED:]
        full = None
        for name in METHODS:
            logprobs = continuation_logprobs(model, methods[name], prompt, rest)
            full = logprobs if full is None else full
            nll[name].append(-float(logprobs[range(len(rest)), rest].mean()))
            kl[name].append(float((full.exp() * (full - logprobs)).sum(-1).mean()))
            bar.update()
    return {
        "tokens": TEXT_TOKENS,
        "scored": TEXT_SCORED,
        "passages": count,
        "nll": {name: _mean(values) for name, values in nll.items()},
        "kl": {name: _mean(values) for name, values in kl.items()},
        **held,
    }


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean()) if values else float("nan")
