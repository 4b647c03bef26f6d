"""Learn which tokens of a prompt a KV head will need, from nothing but its own K and V.

The teacher is KVzip (arXiv 2505.23416): a context is said twice, and a token is worth the most
attention that any query of the repetition pays it, whatever may be asked later. The pupil is linear
(kernels/token_scores.py): ridge regression of the worth's logarithm, for each head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.score_size import num_features
from vllm_headaware.kernels.token_scores import features, unrotated
from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.profile.described import head_shape
from vllm_headaware.profile.probe import native_attention, row_attention, watch_attention
from vllm_headaware.profile.questions import answers_each
from vllm_headaware.tasks.long import make_long

KINDS = (
    *("needles", "multi_key", "tables", "logs", "trails_3", "text", "code", "copies"),
    *("second_turn", "edits"),
)
"""Of contexts, of tasks.long."""
TOKENS = 1000
"""Of a context, at most; twice as many are read."""
AGAIN = "\n\nRepeat the previous context exactly, word for word:\n\n"
RIDGE = 0.02
"""Of what features vary by, which are scaled to vary by 1."""
FAINT = 1e-5
"""Attention that is as good as none."""
ROWS = 256
"""Queries at a time; bounds memory."""


def make_contexts(
    tokenizer: Any, config: Any, *, samples: int, longest: int, seed: int
) -> list[list[int]]:
    """Contexts of the calibration split, as token ids: of every kind that fits in their length.

    Args:
        config: a transformers configuration, of the language model.
        samples, longest: questions of the profile, and tokens of the longest.
    """
    positions = getattr(config, "max_position_embeddings", None) or 2**30
    tokens = min(TOKENS, longest, positions // 2 - len(_between(tokenizer)))
    made = []
    for kind in KINDS:
        with suppress(HeadAwareError):
            made += make_long(
                tokenizer,
                [kind],
                split="calibration",
                count=answers_each(samples),
                tokens=tokens,
                seed=seed,
            )
    return [given.prompt for given in made]


@torch.inference_mode()
def learn_token_scores(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[Sequence[int]],
    tick: Callable[[], object] = lambda: None,
) -> torch.Tensor | None:
    """Weights of every KV head: float32 [layers, KV heads, features], 0 where a layer has a window
    of its own; None if the model does not rotate keys by position in the way that is known.

    Args:
        model: a Hugging Face decoder in eval mode.
        tick: called after each context.
    """
    config = model.config.get_text_config()
    windows = layer_windows(config)
    _, kv_heads, head_size = head_shape(config)
    shape = config.num_hidden_layers, kv_heads
    sums = Sums(shape, num_features(head_size), model.device)
    between = _between(tokenizer)
    for context in contexts:
        count = len(context)
        ids = torch.tensor([[*context, *between, *context]], device=model.device)
        try:
            cos, sin = rotation(model, ids.shape[1])
            watch = partial(_look, sums, windows, count, cos, sin)
            with watch_attention(model, watch):
                model(ids, use_cache=False, logits_to_keep=1)
        except UnknownRotationError:
            return None
        tick()
    return sums.solve()


class UnknownRotationError(Exception):
    """A model does not rotate keys by position in the way that token scores take back."""


def _look(
    sums: Sums,
    windows: Sequence[int | None],
    count: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of a layer, see profile/probe.py; what was repeated goes into the sums."""
    if layer == 0:  # where a key depends on its token and its position alone
        once, again = (
            unrotated(key[0, :, own].float(), cos[own], sin[own])
            for own in (slice(0, count), slice(-count, None))
        )
        if not torch.allclose(once, again, rtol=0, atol=1e-2 * float(once.abs().max())):
            raise UnknownRotationError
    if windows[layer] is None:
        worth = repetition_worth(query, key, count, scale)
        plain = unrotated(key[0, :, :count].float(), cos[:count], sin[:count])
        sums.add(layer, features(plain, value[0, :, :count].float()), (worth + FAINT).log())
    return native_attention(query, key, value, scale, windows[layer])


class Sums:
    """Products of features and targets of all heads, which are all that ridge regression needs."""

    def __init__(self, shape: tuple[int, int], width: int, device: Any) -> None:
        self.count = torch.zeros(shape[0], device=device)
        self.products = torch.zeros(*shape, width + 1, width + 1, device=device)
        self.targets = torch.zeros(*shape, width + 1, device=device)

    def add(self, layer: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Rows of a layer: features [heads, rows, width] and targets [heads, rows]."""
        ones = torch.ones_like(x[..., :1])
        x = torch.cat([x, ones], -1)
        self.count[layer] += x.shape[1]
        self.products[layer] += x.transpose(1, 2) @ x
        self.targets[layer] += (x.transpose(1, 2) @ y[..., None]).squeeze(-1)

    def solve(self) -> torch.Tensor:
        """Weights [layers, heads, width], without the constant, which changes no order."""
        weights = torch.zeros_like(self.targets[..., :-1])
        for layer, count in enumerate(self.count.double()):
            if not count:
                continue
            products, targets = self.products[layer].double(), self.targets[layer].double()
            mean, target = products[:, -1, :-1] / count, targets[:, -1] / count
            covariance = products[:, :-1, :-1] / count - mean[:, :, None] * mean[:, None]
            along = targets[:, :-1] / count - mean * target[:, None]
            scale = covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()
            scaled = covariance / scale[:, :, None] / scale[:, None]
            ridge = RIDGE * torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
            solution = torch.linalg.solve(scaled + ridge, along / scale)
            # The spread of float16 is small: only a head's own order matters, so lengths are free.
            solution = solution / scale
            weights[layer] = (solution / solution.norm(dim=-1, keepdim=True)).float()
        return weights.cpu()


def repetition_worth(
    query: torch.Tensor, key: torch.Tensor, count: int, scale: float
) -> torch.Tensor:
    """The most attention that each of the first `count` tokens gets of the queries that repeat
    them, which are the last ones: float32 [KV heads, count]."""
    length, heads = query.shape[2], key.shape[1]
    worth = torch.zeros(heads, count, device=query.device)
    for begin in range(length - count, length, ROWS):
        rows = torch.arange(begin, min(begin + ROWS, length), device=query.device)
        seen = row_attention(query, key, rows, scale)[..., :count]
        worth = torch.maximum(worth, seen.amax(1).unflatten(0, (heads, -1)).amax(1))
    return worth


def rotation(model: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a Hugging Face model rotates keys by: cos and sin, float32 [count, half of the channels
    that are].

    Raises:
        UnknownRotationError: it has no one embedding for all its layers.
    """
    positions = torch.arange(count, device=model.device)[None]
    rotary: Any = getattr(model.get_decoder(), "rotary_emb", None)
    try:
        cos, sin = rotary(torch.zeros(1, 1, device=model.device), positions)
    except (TypeError, ValueError, AttributeError) as error:
        raise UnknownRotationError from error
    half = cos.shape[-1] // 2
    return cos[0, :, :half].float(), sin[0, :, :half].float()


def _between(tokenizer: Any) -> list[int]:
    return tokenizer.encode(AGAIN, add_special_tokens=False)
