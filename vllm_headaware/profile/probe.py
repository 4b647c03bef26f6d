"""Look into every attention layer of a Hugging Face decoder while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.geometry import layer_windows

PIECE = 512
"""Queries of sink_window_attention that are computed at a time."""
NAME = "vllm_headaware_probe"

Watcher = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(layer, query [1, Hq, T, D], key [1, Hkv, T, D], value [1, Hkv, T, D], scale) ->
output [1, Hq, T, D]."""


@contextmanager
def watch_attention(model: Any, watcher: Watcher) -> Iterator[None]:
    """Route the model's attention through a watcher; the model is as before afterwards.

    Works for any decoder whose attention goes through transformers' attention interface. The
    watcher does causal attention itself; batch size is 1 and there is no padding.

    Raises:
        HeadAwareError: while the model runs, if it caps logits or has windows other than its
            configuration says: nothing here would compute what the model computes.
    """
    windows = layer_windows(model.config)

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        if kwargs.get("softcap") or kwargs.get("sliding_window") != windows[module.layer_idx]:
            raise HeadAwareError(
                f"layer {module.layer_idx} caps its logits or has the window"
                f" {kwargs.get('sliding_window')} where the configuration says"
                f" {windows[module.layer_idx]}; such a model cannot be probed"
            )
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = watcher(module.layer_idx, query, key, value, scale)
        return output.transpose(1, 2).contiguous(), None

    before = model.config._attn_implementation
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Keep no activations of decoder layers but their inputs: the backward pass runs each of them
    once more (arXiv 1604.06174). What looks on sees every layer twice.

    Raises:
        HeadAwareError: a model whose layers are not known.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise HeadAwareError(f"{type(model).__name__} has no decoder layers that profile knows")

    def sparing(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)

    before = [layer.forward for layer in layers]
    for layer, forward in zip(layers, before, strict=True):
        layer.forward = sparing(forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def full_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention with grouped KV heads, causal or under a mask; shapes as in Watcher.

    Args:
        visible: bool [Q, K] (query, key), or None for causal with Q = K.
    """
    # Repeated heads reach the fused kernel; grouped ones take the slow path on a CPU.
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    return scaled_dot_product_attention(
        query, key, value, attn_mask=visible, is_causal=visible is None, scale=scale
    )


def sink_window_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    sink: int,
    window: int,
) -> torch.Tensor:
    """Attention that sees the first `sink` and the last `window` tokens, the query's own included.

    Only keys that some query of a piece sees are read. The queries are the last positions; shapes
    as in Watcher, query and key lengths may differ.
    """
    pieces = []
    positions = torch.arange(key.shape[2], device=query.device)
    rows = positions[key.shape[2] - query.shape[2] :, None]
    for first in range(0, query.shape[2], PIECE):
        queries = rows[first : first + PIECE]
        start = key.shape[2] - query.shape[2] + first
        near = max(start - window + 1, 0)
        keys = torch.cat([positions[: min(sink, near)], positions[near : start + len(queries)]])
        visible = (keys <= queries) & ((keys < sink) | (keys > queries - window))
        pieces.append(
            full_attention(
                query[:, :, first : first + len(queries)],
                key[:, :, keys],
                value[:, :, keys],
                scale,
                visible,
            )
        )
    return torch.cat(pieces, dim=2)


def native_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """What the model itself does: causal, or the last `window` tokens, the query's own included.

    The queries are the last positions; shapes as in Watcher, query and key lengths may differ.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    if num_queries == num_keys and (window is None or num_keys <= window):
        return full_attention(query, key, value, scale)
    key_pos = torch.arange(num_keys, device=query.device)
    query_pos = key_pos[num_keys - num_queries :, None]
    visible = key_pos <= query_pos
    if window is not None:
        visible &= key_pos > query_pos - window
    return full_attention(query, key, value, scale, visible)


def row_attention(
    query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention probabilities of some query rows only.

    Args:
        query: [1, Hq, T, D]; key: [1, Hkv, T, D]
        rows: int64 [R], query positions, on the query's device.

    Returns:
        float32 [Hq, R, T]; position t > row has probability 0.
    """
    group = query.shape[1] // key.shape[1]
    keys = key[0].repeat_interleave(group, dim=0).float()
    logits = query[0, :, rows].float() @ keys.transpose(1, 2) * scale
    hidden = torch.arange(key.shape[2], device=rows.device) > rows[:, None]
    return logits.masked_fill(hidden, float("-inf")).softmax(-1)


def max_over_group(scores: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """[Hq] -> [Hkv]: a KV head is worth what its best query head is worth."""
    return scores.view(num_kv_heads, -1).amax(-1)


def last_logits(model: Any, input_ids: torch.Tensor, count: int) -> torch.Tensor:
    """Logits that predict the last `count` tokens of input_ids: float32 [count, vocabulary].

    The output layer runs on those positions only; it costs as much as many decoder layers.
    """
    output = model(input_ids[None], use_cache=False, logits_to_keep=count + 1)
    return output.logits[0, :-1].float()
