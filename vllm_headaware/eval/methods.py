"""Methods under test: what each KV head of a Hugging Face model can see.

A method is given every key and value that was ever computed and masks what it would not hold. So
these numbers are about what a model still knows, not about memory; the bytes beside them are those
that the plan of the same policy holds in the engine. What is held is rounded as its KV format
rounds it (cache.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from vllm_headaware.kernels.reference import UNLIMITED, HeadRule, visible
from vllm_headaware.plan import HeadClass, Plan
from vllm_headaware.plan.windows import reading_window


class Method(Protocol):
    """How the KV heads of one request attend; a new request starts with start()."""

    @property
    def reader(self) -> ByRule:
        """What computes the prompt: the method itself, or one that several share."""
        ...

    @property
    def formats(self) -> list[list[str]]:
        """KV format of every `[layer][KV head]`."""
        ...

    @property
    def by_position(self) -> bool:
        """Whether what is visible depends on positions alone, not on how tokens are grouped."""
        ...

    def start(self) -> None:
        """Forget the request before."""
        ...

    def saw(self, layer: int, query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        """Look on while the reader computes a piece of the prompt.

        Args:
            query: [1, Hq, Q, D], the last Q of K positions.
            key: [1, Hkv, K, D], of all positions.
        """
        ...

    def prompt_done(self) -> None:
        """The whole prompt has been computed; what follows is decoding."""
        ...

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of the newest tokens.

        Args:
            query, key: as in saw().
            value: [1, Hkv, K, D].

        Returns:
            [1, Hq, Q, D].
        """
        ...


class ByRule:
    """Every KV head sees what its class in a plan holds: all, or sinks and a window in blocks.

    Args:
        plan: of the layers that have no window of their own.
        windows: of every layer of the model, in tokens; the plan's layers are those with None.
            All layers are the plan's when left out.
    """

    by_position = True

    def __init__(self, plan: Plan, windows: Sequence[int | None] = ()) -> None:
        geometry = plan.geometry
        self.windows = tuple(windows) or (None,) * geometry.num_layers
        self.formats: list[list[str]] = []
        self.layers: list[list[tuple[HeadRule, list[int], list[int]]]] = []
        self.reading = True
        everyone = list(range(geometry.num_kv_heads))
        planned = iter(range(geometry.num_layers))
        for window in self.windows:
            if window is None:
                layer = next(planned)
                formats = [plan.classes[i].policy.dtype for i in plan.assignment[layer]]
                both = zip(plan.classes, plan.heads(layer), strict=True)
                parts = [(rule_of(c), list(heads)) for c, heads in both if heads]
            else:
                formats = [geometry.kv_dtype] * geometry.num_kv_heads
                parts = [(HeadRule(0, window), everyone)]
            self.formats.append(formats)
            self.layers.append([(r, h, query_heads(h, geometry.group_size)) for r, h in parts])
        self._masks: dict[HeadRule, tuple[torch.Tensor, torch.Tensor]] = {}
        self._shape = (0, 0)

    @property
    def reader(self) -> ByRule:
        return self

    def reads(self, num_prompt: int) -> Hashable:
        """How a prompt of num_prompt tokens is read: what is equal of two readers is read alike."""

        def hides(rule: HeadRule) -> HeadRule | None:
            window = reading_window(rule.window, rule.prefill_window)
            if window is None or window >= num_prompt:
                return None
            return replace(rule, window=window, prefill_window=0)

        rules = (
            tuple(sorted((head, hides(rule)) for rule, heads, _ in parts for head in heads))
            for parts in self.layers
        )
        return tuple(rules), tuple(map(tuple, self.formats))

    def start(self) -> None:
        """A prompt is read."""
        self.reading = True

    def saw(self, layer: int, query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        """What a head sees depends on positions alone."""

    def prompt_done(self) -> None:
        """Windows for prompts no longer hold."""
        self.reading = False
        self._masks = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Method.attend; only keys that some query sees are read."""
        output = torch.empty_like(query)
        for rule, heads, own in self.layers[layer]:
            mask, seen = self._mask(rule, query.shape[2], key.shape[2])
            output[:, own] = masked_attention(
                query[:, own],
                key[:, heads].index_select(2, seen),
                value[:, heads].index_select(2, seen),
                mask,
                scale,
            )
        return output

    def _mask(
        self, rule: HeadRule, num_queries: int, num_keys: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which keys some query sees, int64 [S], and who sees which, bool [Q, S]."""
        # All layers ask for the same few masks.
        if self._shape != (num_queries, num_keys):
            self._shape, self._masks = (num_queries, num_keys), {}
        if rule not in self._masks:
            key_pos = torch.arange(num_keys)
            num_prompt = num_keys if self.reading else 0
            mask = visible(key_pos[num_keys - num_queries :], key_pos, rule, num_prompt)
            seen = mask.any(0).nonzero().flatten()
            self._masks[rule] = mask[:, seen], seen
        return self._masks[rule]


class HeavyHitters:
    """H2O (arXiv 2306.14048): keep the tokens that drew most attention so far, and the latest ones.

    The prompt is computed with everything visible, as in the paper; when it is done, and after
    every step from then on, each KV head drops what exceeds its budget. Half of the budget is for
    the latest tokens. Attention is accumulated over all queries and the query heads of the group.

    Args:
        budget: tokens each KV head keeps, at least 2.
        dtype: KV format of what is kept.
        reader: computes the prompt; sees everything.
    """

    by_position = False

    def __init__(self, budget: int, dtype: str, reader: ByRule) -> None:
        if budget < 2:
            raise ValueError(f"h2o needs a budget of at least 2 tokens per KV head, got {budget}")
        self.budget, self.reader = budget, reader
        self.formats = [
            [dtype] * len(row) if window is None else row
            for row, window in zip(reader.formats, reader.windows, strict=True)
        ]
        self.start()

    def start(self) -> None:
        """No attention seen, nothing evicted."""
        self.evicting = False
        self.drawn: dict[int, torch.Tensor] = {}
        self.held: dict[int, torch.Tensor] = {}

    def saw(self, layer: int, query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        """Accumulate what every key drew."""
        if self.reader.windows[layer] is not None:
            return
        self._grow(layer, key)
        num_queries, num_keys = query.shape[2], key.shape[2]
        position = torch.arange(num_keys)
        later = position > position[num_keys - num_queries :, None]
        for head, rows in enumerate(query[0].unflatten(0, (key.shape[1], -1))):
            # One KV head at a time stays in the processor's cache.
            logits = rows.float() @ (key[0, head].float().T * scale)
            weights = logits.masked_fill_(later, float("-inf")).softmax(-1)
            self.drawn[layer][head] += weights.sum((0, 1))

    def prompt_done(self) -> None:
        """Evict for the first time."""
        self.evicting = True
        for layer in self.drawn:
            self._evict(layer)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Method.attend."""
        if self.reader.windows[layer] is not None:
            return self.reader.attend(layer, query, key, value, scale)
        self._grow(layer, key)
        num_queries, num_keys = query.shape[2], key.shape[2]
        position = torch.arange(num_keys)
        causal = position <= position[num_keys - num_queries :, None]
        rows = query[0].unflatten(0, (key.shape[1], -1)).float()  # [Hkv, group, Q, D]
        logits = rows @ key[0].float().unsqueeze(1).transpose(-1, -2) * scale
        logits.masked_fill_(~(causal & self.held[layer][:, None])[:, None], float("-inf"))
        weights = logits.softmax(-1)
        self.drawn[layer] += weights.sum((1, 2))
        if self.evicting:
            self._evict(layer)
        output = weights @ value[0].float().unsqueeze(1)
        return output.flatten(0, 1)[None].to(query.dtype)

    def _grow(self, layer: int, key: torch.Tensor) -> None:
        """Room for keys that came since; they have drawn nothing and are held."""
        num_heads, num_keys = key.shape[1:3]
        if layer not in self.drawn:
            self.drawn[layer] = torch.zeros(num_heads, 0)
            self.held[layer] = torch.ones(num_heads, 0, dtype=torch.bool)
        new = num_keys - self.drawn[layer].shape[1]
        self.drawn[layer] = torch.cat([self.drawn[layer], torch.zeros(num_heads, new)], 1)
        more = torch.ones(num_heads, new, dtype=torch.bool)
        self.held[layer] = torch.cat([self.held[layer], more], 1)

    def _evict(self, layer: int) -> None:
        held, drawn = self.held[layer], self.drawn[layer]
        if held.shape[1] <= self.budget:
            return
        latest = self.budget // 2
        rank = drawn.masked_fill(~held, -1.0)
        rank[:, -latest:] = float("inf")
        kept = rank.topk(self.budget, dim=1).indices
        self.held[layer] = torch.zeros_like(held).scatter_(1, kept, True)


def rule_of(head_class: HeadClass) -> HeadRule:
    """The visibility rule of a plan's head class."""
    policy = head_class.policy
    if policy.window is None:
        return UNLIMITED
    return HeadRule(
        policy.sink,
        policy.window,
        head_class.block_tokens,
        prefill_window=policy.prefill_window,
    )


def query_heads(kv_heads: Sequence[int], group: int) -> list[int]:
    """The query heads that share the given KV heads."""
    return [head * group + i for head in kv_heads for i in range(group)]


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention with grouped KV heads.

    Args:
        query: [1, Hq, Q, D]; key, value: [1, Hkv, K, D]
        mask: bool [Q, K], True where visible.
    """
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
