"""Measure a model: questions for the gate and copy scores, answers for gates that are trained,
repeated noise for induction."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.profile.ablation import SHARES, ablate
from vllm_headaware.profile.agreement import spearman, split_half
from vllm_headaware.profile.answers import EPOCHS, read_prompt, train_gates
from vllm_headaware.profile.bar import profiling_bar
from vllm_headaware.profile.copying import CopyWatch
from vllm_headaware.profile.described import describe_model, provenance, rounded
from vllm_headaware.profile.format import SINK, WINDOW, HeadProfile
from vllm_headaware.profile.gate import gate_gradients, gate_scores, gate_shares
from vllm_headaware.profile.induction import induction_scores
from vllm_headaware.profile.questions import (
    PASSAGE_TOKENS,
    Question,
    answer_lengths,
    answers_each,
    make_answers,
    make_questions,
)
from vllm_headaware.profile.resume import Findings, unfinished_place
from vllm_headaware.profile.token_scores import learn_token_scores, make_contexts
from vllm_headaware.profile.token_weights import pack

DEFAULT_LENGTHS = (1000, 1500, 3000)
"""As long as time allows: a ranking from prompts of up to 2,200 tokens misses heads that prompts of
4,000 need. The shortest is one at which the demo model can follow chains."""
DEFAULT_SAMPLES = 24
DEFAULT_BOUND = 0.05
"""Nats per answer token that closed heads may cost in the ablation."""
INDUCTION_LENGTH, INDUCTION_RUNS = 128, 4


def profile_model(
    model_dir: str | Path,
    *,
    sink: int = SINK,
    window: int = WINDOW,
    samples: int = DEFAULT_SAMPLES,
    lengths: Sequence[int] = DEFAULT_LENGTHS,
    seed: int = 0,
    bound: float = DEFAULT_BOUND,
    device: str = "cpu",
    dtype: str = "float32",
    progress: bool | None = None,
    resume: bool = False,
) -> HeadProfile:
    """Score every KV head of a model on generated calibration prompts.

    Args:
        sink, window: what a local head would keep, in tokens; scores are relative to that.
        samples: questions, see make_questions().
        lengths: of the prompts, in tokens.
        bound: nats per answer token that may be lost as heads are closed in order of rank.
        device: what computes, a name of torch's.
        dtype: of weights and activations, likewise.
        progress: show a bar on stderr; None means only on a terminal.
        resume: keep what is found in the user's cache until all is done, and begin with what is
            there of the same measurement.

    Raises:
        HeadAwareError: a model that cannot be loaded or probed, or prompts that fit in the window.
    """
    if samples < 2:
        raise HeadAwareError(f"samples must be at least 2 to measure agreement, got {samples}")
    if sink < 0 or window < 1:
        raise HeadAwareError(
            f"sink must be 0 or more and window 1 or more, in tokens; got {sink} and {window}"
        )
    if not lengths or min(lengths) <= sink + window:
        raise HeadAwareError(
            f"prompts of {min(lengths, default=0)} tokens fit in sinks and window ({sink} +"
            f" {window}); every head would look local: use longer --lengths"
        )
    if not bound > 0:
        raise HeadAwareError(f"the ablation's bound must be above 0, in nats, got {bound}")
    started = time.monotonic()
    folder = Path(model_dir)
    model, tokenizer = load_model(folder, device, dtype)
    described = describe_model(folder, model.config.get_text_config())
    _require_plain_attention(model.config.get_text_config(), max(lengths))
    questions = make_questions(
        tokenizer, samples=samples, lengths=lengths, seed=seed, sink=sink, window=window
    )
    answers = make_answers(
        tokenizer,
        each=answers_each(samples),
        lengths=answer_lengths(model.config.get_text_config(), max(lengths)),
        seed=seed,
    )
    contexts = make_contexts(
        tokenizer,
        model.config.get_text_config(),
        samples=samples,
        longest=max(lengths),
        seed=seed,
    )
    weights = [question.weight for question in questions]
    total = len(questions) + (EPOCHS + 1) * len(answers) + len(contexts)
    total += INDUCTION_RUNS + len(SHARES) + 1
    bar = profiling_bar(total, progress)
    method = {
        "sink": sink,
        "window": window,
        "samples": samples,
        "lengths": list(lengths),
        "seed": seed,
    }
    asked = {**method, "bound": bound, "dtype": dtype}
    place = unfinished_place(described.hash, asked) if resume else None
    found = Findings(place, bar.update)
    gradients, copies = [], []
    with bar:
        for number, question in enumerate(questions):
            gradient, copied = found.once(
                f"question-{number}", partial(_ask, model, question, sink, window, bar.update), 1
            )
            gradients.append(gradient)
            if copied is not None:
                copies.append(copied)
        shares = gate_shares(torch.stack(gradients))
        gate = gate_scores(shares, weights)
        half = len(answers) // 2
        halves = torch.stack(
            [
                found.once(
                    f"gates-{number}",
                    partial(_train, model, part, sink, window, seed, bar.update),
                    (EPOCHS + 1) * len(part),
                )
                for number, part in enumerate((answers[:half], answers[half:]))
            ]
        )
        ablation = found.once(
            "ablation",
            partial(ablate, model, _to_ablate(questions), gate, sink, window, bound, bar.update),
            len(SHARES) + 1,
        )
        token_scores = found.once(
            "token-scores",
            partial(learn_token_scores, model, tokenizer, contexts, bar.update),
            len(contexts),
        )
        generator = torch.Generator().manual_seed(seed)
        inductions = []
        for _ in range(INDUCTION_RUNS):
            vocab = model.config.get_text_config().vocab_size
            inductions.append(induction_scores(model, vocab, INDUCTION_LENGTH, generator))
            bar.update()
    found.forget()

    copying = torch.stack(copies) if copies else torch.zeros_like(shares[:1])
    induced = torch.stack(inductions)
    scores = {
        "gate": gate,
        "answer": halves.mean(0),
        "copy": copying.mean(0),
        "induction": induced.mean(0),
    }
    config = model.config.get_text_config()
    # Layers with a window of their own score 0 in every sample: that is no agreement.
    scored = [layer for layer, window in enumerate(layer_windows(config)) if window is None]
    return HeadProfile(
        model=described,
        scores={name: rounded(values) for name, values in scores.items()},
        method={**method, "samples_copied": len(copies)},
        agreement={
            "split_half_spearman": {
                "gate": _gate_agreement(shares[:, scored], weights),
                "answer": round(spearman(halves[0][scored], halves[1][scored]), 4),
                "copy": split_half(lambda part: copying[part].mean(0)[scored], len(copies)),
                "induction": split_half(lambda part: induced[part].mean(0)[scored], len(induced)),
            },
            "between_methods_spearman": {
                f"{a}-{b}": round(spearman(scores[a][scored], scores[b][scored]), 4)
                for a, b in itertools.combinations(scores, 2)
            },
        },
        ablation=ablation,
        token_scores="" if token_scores is None else pack(token_scores),
        provenance=provenance(folder, started, device),
    )


def load_model(folder: Path, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """Model and tokenizer of a folder, in eval mode, without gradients.

    Raises:
        HeadAwareError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError, ImportError) as error:
        detail = " ".join(str(error).split())
        raise HeadAwareError(f"cannot load the model in {folder}: {detail}") from error
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        detail = str(error).splitlines()[0]
        raise HeadAwareError(
            f"cannot put the model on the device {device!r}: {detail}; use --device cpu"
        ) from error
    return model.eval().requires_grad_(False), tokenizer


def _ask(
    model: Any, question: Question, sink: int, window: int, tick: Callable[[], object]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of the gates and, where the answer was copied, copy scores: [layers, KV heads]."""
    watch = CopyWatch(model, question)
    gradient, logits = gate_gradients(model, question, sink, window, watch.saw)
    tick()
    return gradient, watch.scores(logits)


def _train(
    model: Any,
    answers: Sequence[Question],
    sink: int,
    window: int,
    seed: int,
    tick: Callable[[], object],
) -> torch.Tensor:
    """Gates trained on answers, [layers, KV heads]."""
    with tempfile.TemporaryDirectory(prefix="vllm-headaware-profile-") as folder:
        read = []
        for number, question in enumerate(answers):
            read.append(read_prompt(model, question, Path(folder, str(number))))
            tick()
        return train_gates(model, read, sink=sink, window=window, seed=seed, tick=tick)


def _gate_agreement(shares: torch.Tensor, weights: Sequence[float]) -> float:
    return split_half(
        lambda part: gate_scores(shares[part], [weights[i] for i in part]), len(weights)
    )


def _to_ablate(questions: Sequence[Question]) -> list[Question]:
    """A needle of middle length that a closed head cannot see, and a chain: asked many times."""
    chains = [question for question in questions if not question.needle]
    needles = [question for question in questions if question.needle]
    far = [question for question in questions if question.is_far] or needles
    return [far[(len(far) - 1) // 2], chains[0]]


def _require_plain_attention(config: Any, length: int) -> None:
    """Refuse what the probe would not reproduce, so that no wrong score is ever written."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    odd = sorted(kinds - {"full_attention", "sliding_attention"})
    if "sliding_attention" in kinds and not getattr(config, "sliding_window", None):
        odd.append("sliding_attention without a window")
    if odd or None not in layer_windows(config):
        raise HeadAwareError(
            "the model has no layers of full causal attention, or layers that are neither that nor"
            f" a sliding window ({', '.join(odd) or 'sliding window'}), and cannot be profiled; use"
            " --kv-policy full for it"
        )
    if getattr(config, "attn_logit_softcapping", None):
        raise HeadAwareError(
            "the model caps attention logits, which cannot be profiled; use --kv-policy full for it"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit and length + PASSAGE_TOKENS > limit:
        raise HeadAwareError(
            f"prompts of {length} tokens do not fit in the model's {limit} positions; use shorter"
            " --lengths"
        )
