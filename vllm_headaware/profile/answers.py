"""Which KV heads answers need once the prompt has been read: gates of the answer's rows, trained.

DuoAttention (arXiv 2410.10819) trains gates over all rows. Where prompts are read in full, heads
are closed only after that: so a prompt is read once, without gradients, and what is run again and
again is its answer alone. The loss is how far the choices are from those of the full cache (KL),
and a price for every gate that is open. The head whose gate stays open longest needs its history
most.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.profile.probe import native_attention, sink_window_attention, watch_attention
from vllm_headaware.profile.questions import Question

EPOCHS, BATCH = 4, 2
STEP = 0.06
"""How far a step of Adam (arXiv 1412.6980) may move a gate."""
DECAYS = (0.8, 0.95)
PRICE = 0.002
"""Nats by which an open gate must bring the choices closer to the full cache's."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt that a model has read, all but its last token. What is known of it is in a file, so
    that memory holds one prompt at a time.

    Attributes:
        rows: int64 [R], that token and the answer without its last, on the model's device.
        file: see load().
    """

    rows: torch.Tensor
    file: Path

    def load(self) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Keys and values of each layer, [1, KV heads, tokens, head size] on the CPU, and the log
        probabilities with the full cache, float32 [R, vocabulary] on the model's device."""
        kept = torch.load(self.file, mmap=True, map_location="cpu")
        return kept["cache"], kept["target"].to(self.rows.device)


@torch.no_grad()
def read_prompt(model: Any, question: Question, file: Path) -> ReadPrompt:
    """Run a question's prompt through a Hugging Face decoder in eval mode.

    Args:
        file: where to keep what was read.
    """
    windows = layer_windows(model.config)

    def native(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        return native_attention(query, key, value, scale, windows[layer])

    ids = question.input_ids.to(model.device)
    split = len(ids) - question.num_answer_tokens - 1
    rows, kept = ids[split:-1], DynamicCache()
    layers: Any = kept.layers
    with watch_attention(model, native):
        model(ids[None, :split], past_key_values=kept, logits_to_keep=1)
        cache = [(layer.keys.cpu(), layer.values.cpu()) for layer in layers]
        del kept, layers
        target = _choices(model, rows, cache)
    torch.save({"cache": cache, "target": target}, file)
    return ReadPrompt(rows, file)


def answer_divergence(
    model: Any, read: ReadPrompt, gates: torch.Tensor, sink: int, window: int
) -> torch.Tensor:
    """How far an answer's choices are from the full cache's: mean KL divergence, in nats.

    Args:
        gates: float32 [layers, KV heads] on the model's device: 1 sees everything, 0 only sinks and
            window. Those of layers with a window of their own have no effect.
        sink, window: in tokens.
    """
    windows = layer_windows(model.config)

    def gated(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        if windows[layer] is not None:
            return native_attention(query, key, value, scale, windows[layer])

        def mixed(query: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
            full = native_attention(query, key, value, scale, None)
            closed = sink_window_attention(query, key, value, scale, sink, window)
            gate = gates.repeat_interleave(query.shape[1] // key.shape[1])[:, None, None]
            return (gate * full + (1 - gate) * closed).to(query.dtype)

        # What attention makes of all those keys is computed again for the backward pass, not kept.
        return checkpoint(mixed, query, gates[layer], use_reentrant=False)

    cache, target = read.load()
    with watch_attention(model, gated):
        choices = _choices(model, read.rows, cache)
    return torch.nn.functional.kl_div(choices, target, reduction="batchmean", log_target=True)


def train_gates(
    model: Any,
    read: Sequence[ReadPrompt],
    *,
    sink: int,
    window: int,
    price: float = PRICE,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """Close the gates that answers do not miss.

    Args:
        price: of a gate that is open all the way, in nats.
        tick: called after each prompt of each epoch.

    Returns:
        float32 [layers, KV heads] on the CPU, 0 to 1: how open each gate was on average; 0 in
        layers with a window of their own.
    """
    full = torch.tensor([window is None for window in layer_windows(model.config)])
    keys = read[0].load()[0][0][0]
    gates = full[:, None].expand(-1, keys.shape[1]).float()
    adam = torch.optim.Adam([gates], lr=STEP, betas=DECAYS)
    open_for = torch.zeros_like(gates)
    lot, steps = random.Random(seed), 0
    for _ in range(EPOCHS):
        order = lot.sample(range(len(read)), len(read))
        while order:
            batch, order = order[:BATCH], order[BATCH:]
            gates.grad = torch.full_like(gates, price)
            for index in batch:
                gates.grad += _gradient(model, read[index], gates, sink, window) / len(batch)
                tick()
            adam.step()
            gates.clamp_(0, 1)
            open_for += gates
            steps += 1
    return open_for / steps * full[:, None]


def _gradient(
    model: Any, read: ReadPrompt, gates: torch.Tensor, sink: int, window: int
) -> torch.Tensor:
    own = gates.clone().to(model.device).requires_grad_()
    # One thread drives forward and backward: two OpenMP teams would wait for each other.
    with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
        answer_divergence(model, read, own, sink, window).backward()
    assert own.grad is not None
    return own.grad.cpu()


def _choices(
    model: Any, rows: torch.Tensor, cache: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Log probabilities after each row, float32 [R, vocabulary]; the cache stays as it is."""
    own = DynamicCache()
    for layer, (keys, values) in enumerate(cache):
        own.update(keys.to(rows.device), values.to(rows.device), layer)
    return model(rows[None], past_key_values=own).logits[0].float().log_softmax(-1)
