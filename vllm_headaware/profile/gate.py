"""Gate saliency: how much an answer would suffer if a KV head saw only sinks and a window.

DuoAttention (arXiv 2410.10819) puts a gate on every KV head, alpha x full + (1 - alpha) x
(sinks + window), and trains it. Here the gate stays open (alpha = 1) and its first-order effect on
the loss of the answer is measured instead: one backward pass scores all heads of all layers. It
tells what a prompt needs that is read under windows; see answers.py for prompts read in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.profile.probe import (
    last_logits,
    native_attention,
    recomputed,
    sink_window_attention,
    watch_attention,
)
from vllm_headaware.profile.questions import Question


def gate_gradients(
    model: Any,
    question: Question,
    sink: int,
    window: int,
    saw: Callable[[int, torch.Tensor, torch.Tensor, float], None] = lambda *_: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """d(loss) / d(alpha) of every KV head at alpha = 1.

    Args:
        model: a Hugging Face decoder in eval mode whose parameters need no gradients.
        question: the loss is the mean NLL of its answer, in nats per token.
        sink, window: what a closed gate would leave visible, in tokens.
        saw: looks on: called with layer, query, key and scale; see Watcher.

    Returns:
        Gradients, float32 [num_layers, num_kv_heads]: negative where closing the gate would raise
        the loss, 0 in layers that see only a window of their own. And the logits that predict the
        answer, float32 [num_answer_tokens, vocabulary]. Both on the CPU.
    """
    input_ids = question.input_ids.to(model.device)
    windows = layer_windows(model.config)
    gates: dict[int, torch.Tensor] = {}

    def gated(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        full = native_attention(query, key, value, scale, windows[layer])
        with torch.no_grad():
            saw(layer, query, key, scale)
        if windows[layer] is not None:
            return full
        with torch.no_grad():
            local = sink_window_attention(query, key, value, scale, sink, window)
            difference = (full - local).unflatten(1, (key.shape[1], -1))
        if layer not in gates:
            gates[layer] = torch.ones(key.shape[1], device=key.device, requires_grad=True)
        alpha = gates[layer].to(query.dtype)
        # alpha x full + (1 - alpha) x local, written so that only alpha's own effect is new.
        return full + ((alpha - 1)[:, None, None, None] * difference).flatten(1, 2)

    # One thread drives forward and backward: two OpenMP teams would wait for each other.
    one_thread = torch.autograd.set_multithreading_enabled(False)
    with watch_attention(model, gated), recomputed(model), torch.enable_grad(), one_thread:
        logits = last_logits(model, input_ids, question.num_answer_tokens)
        cross_entropy(logits, input_ids[-question.num_answer_tokens :]).backward()
    heads = next(iter(gates.values())).shape[0]
    gradients = torch.zeros(len(windows), heads)
    for layer, gate in gates.items():
        if gate.grad is not None:
            gradients[layer] = gate.grad.cpu()
    return gradients, logits.detach().cpu()


def gate_shares(gradients: torch.Tensor) -> torch.Tensor:
    """Each sample's saliency as shares of its total, so that no single hard sample decides.

    Absolute gradients, because a head can matter to an answer in both directions and signs cancel
    over samples.

    Args:
        gradients: float32 [samples, layers, KV heads]

    Returns:
        The same shape; every sample sums to 1 (0 everywhere if nothing matters).
    """
    saliency = gradients.abs()
    total = saliency.sum(dim=(1, 2), keepdim=True)
    return saliency / total.clamp_min(torch.finfo(torch.float32).tiny)


def gate_scores(shares: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Weighted mean share of each head.

    Args:
        shares: float32 [samples, layers, KV heads], of gate_shares().
        weights: of the samples; they need not sum to 1.

    Returns:
        float32 [layers, KV heads], summing to 1 (0 everywhere if nothing matters).
    """
    parts = torch.tensor(weights, dtype=torch.float32)
    mean = torch.tensordot(parts / parts.sum(), shares, 1)
    return mean / mean.sum().clamp_min(torch.finfo(torch.float32).tiny)
