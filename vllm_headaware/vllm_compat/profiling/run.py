"""Profiles of models that cannot be differentiated, or not here: measured through vLLM."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.agreement import spearman
from vllm_headaware.profile.bar import profiling_bar
from vllm_headaware.profile.described import describe_model, provenance, rounded
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.questions import answer_lengths, answers_each, make_answers
from vllm_headaware.profile.run import INDUCTION_LENGTH, INDUCTION_RUNS


def profile_through_engine(
    model_dir: Path,
    *,
    sink: int,
    window: int,
    samples: int,
    lengths: Sequence[int],
    seed: int = 0,
    engine_args: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> HeadProfile:
    """Score every KV head by what answers would lose of its output, in one forward pass each.

    Args:
        sink, window, samples, lengths, seed: as of profile_model().
        engine_args: further arguments of vllm.LLM: dtype, tensor_parallel_size, quantization, ...
        progress: show a bar on stderr; None means only on a terminal.

    Raises:
        HeadAwareError: a model that vLLM cannot load, or whose layers cannot be watched.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from transformers import AutoConfig, AutoTokenizer

    started = time.monotonic()
    config = AutoConfig.from_pretrained(model_dir).get_text_config()
    model = describe_model(model_dir, config)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    answers = make_answers(
        tokenizer,
        each=answers_each(samples),
        lengths=answer_lengths(config, max(lengths)),
        seed=seed,
    )
    longest = max(2 * INDUCTION_LENGTH, *(len(answer.input_ids) for answer in answers)) + 1
    shape = model.num_layers, model.num_kv_heads
    # Of one request in float32, with room for its last blocks.
    kv_bytes = 8 * (longest + 512) * model.head_size * math.prod(shape)
    engine = Engine(model_dir, longest, kv_bytes, dict(engine_args or {}))
    generator = torch.Generator().manual_seed(seed)
    changes, inductions = [], []
    with profiling_bar(len(answers) + INDUCTION_RUNS, progress) as bar:
        for answer in answers:
            seen = engine.change(
                answer.input_ids.tolist()[:-1], answer.num_answer_tokens, sink, window
            )
            changes.append(_matrix(seen, shape))
            bar.update()
        for _ in range(INDUCTION_RUNS):
            once = torch.randint(config.vocab_size, (INDUCTION_LENGTH,), generator=generator)
            inductions.append(_matrix(engine.induction(once.tolist()), shape))
            bar.update()
    change, induced = torch.stack(changes), torch.stack(inductions)
    half = len(answers) // 2
    scored = sorted(seen)
    halves = change[:half].mean(0)[scored], change[half:].mean(0)[scored]
    scores = {
        # Where prompts are read under windows too, this is the nearest there is.
        "gate": change.mean(0),
        "answer": change.mean(0),
        "copy": torch.zeros(shape),
        "induction": induced.mean(0),
    }
    return HeadProfile(
        model=model,
        scores={name: rounded(values) for name, values in scores.items()},
        method={
            "through_engine": True,
            "sink": sink,
            "window": window,
            "samples": samples,
            "lengths": list(lengths),
            "seed": seed,
        },
        agreement={"split_half_spearman": {"answer": round(spearman(*halves), 4)}},
        provenance=provenance(model_dir, started, engine.device),
    )


class Engine:
    """vLLM with its layers watched; one request at a time, in one step."""

    def __init__(
        self, model_dir: Path, longest: int, kv_bytes: int, engine_args: dict[str, Any]
    ) -> None:
        from vllm import LLM, SamplingParams

        from vllm_headaware.vllm_compat.profiling import watch

        self._watch = watch
        self._params = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
        options = {
            "max_model_len": longest + 1,
            "max_num_batched_tokens": longest + 1,
            "max_num_seqs": 1,
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "kv_cache_memory_bytes": kv_bytes,
            **engine_args,
        }
        try:
            self._llm: Any = LLM(str(model_dir), **options)
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            detail = " ".join(str(error).split())[:600]
            raise HeadAwareError(f"vLLM cannot load {model_dir}: {detail}") from error
        self.device = self._llm.llm_engine.vllm_config.device_config.device_type
        self._llm.apply_model(watch.install)

    def change(self, ids: list[int], rows: int, sink: int, window: int) -> dict[int, torch.Tensor]:
        """Of every layer that is watched, the scores of its KV heads; `rows` are the last."""
        return self._step(ids, rows=rows, sink=sink, window=window)[0]

    def induction(self, once: list[int]) -> dict[int, torch.Tensor]:
        """The same, for tokens that are said twice."""
        ranks = self._step([*once, *once], repeated=len(once))
        return {layer: torch.cat([rank[layer] for rank in ranks]) for layer in ranks[0]}

    def _step(
        self, ids: list[int], rows: int = 0, sink: int = 0, window: int = 0, repeated: int = 0
    ) -> list[dict[int, torch.Tensor]]:
        from vllm.inputs import TokensPrompt

        self._llm.apply_model(
            functools.partial(
                self._watch.expect, rows=rows, sink=sink, window=window, repeated=repeated
            )
        )
        self._llm.generate(TokensPrompt(prompt_token_ids=ids), self._params, use_tqdm=False)
        return self._llm.apply_model(self._watch.taken)


def _matrix(by_layer: Mapping[int, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Scores [layers, KV heads]; layers with a window of their own score 0."""
    scores = torch.zeros(shape)
    for layer, row in by_layer.items():
        scores[layer] = row
    return scores
