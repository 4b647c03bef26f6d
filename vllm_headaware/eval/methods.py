"""Methods under test: what each KV head of a Hugging Face model can see.

A method is given every key and value that was ever computed and masks what it would not hold. So
these numbers are about what a model still knows, not about memory; the bytes beside them are those
that the plan of the same policy holds in the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from vllm_headaware.kernels.reference import UNLIMITED, HeadRule, stored, visible
from vllm_headaware.plan import HeadClass, Plan


class Method(Protocol):
    """How the KV heads of one request attend; a new request starts with start()."""

    def start(self) -> None:
        """Forget the request before."""
        ...

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of the newest tokens.

        Args:
            query: [1, Hq, Q, D], the last Q of K positions.
            key, value: [1, Hkv, K, D], of all positions.

        Returns:
            [1, Hq, Q, D].
        """
        ...

    def prompt_done(self) -> None:
        """The whole prompt has been computed; what follows is decoding."""
        ...


class ByRule:
    """Every KV head sees what its class in a plan holds: all, or sinks and a window in blocks.

    Quantised classes are simulated: keys and values become what their KV format would give back.
    """

    def __init__(self, plan: Plan) -> None:
        self.layers: list[list[tuple[HeadRule, str, list[int]]]] = []
        for layer in range(plan.geometry.num_layers):
            parts = zip(plan.classes, plan.heads(layer), strict=True)
            self.layers.append(
                [(rule_of(c), c.policy.dtype, list(heads)) for c, heads in parts if heads]
            )

    def start(self) -> None:
        """Nothing is remembered."""

    def prompt_done(self) -> None:
        """What a head sees depends on positions alone."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Method.attend; only keys that some query sees are read."""
        num_queries, num_keys = query.shape[2], key.shape[2]
        key_pos = torch.arange(num_keys)
        output = torch.empty_like(query)
        for rule, dtype, heads in self.layers[layer]:
            mask = visible(key_pos[num_keys - num_queries :], key_pos, rule)
            seen = mask.any(0)
            own = query_heads(heads, query.shape[1] // key.shape[1])
            output[:, own] = masked_attention(
                query[:, own],
                stored(key[:, heads][:, :, seen], dtype),
                stored(value[:, heads][:, :, seen], dtype),
                mask[:, seen],
                scale,
            )
        return output


class HeavyHitters:
    """H2O (arXiv 2306.14048): keep the tokens that drew most attention so far, and the latest ones.

    The prompt is computed with everything visible, as in the paper; when it is done, and after
    every step from then on, each KV head drops what exceeds its budget. Half of the budget is for
    the latest tokens. Attention is accumulated over all queries and the query heads of the group.

    Args:
        budget: tokens each KV head keeps, at least 2.
        dtype: KV format of what is kept.
    """

    def __init__(self, budget: int, dtype: str) -> None:
        if budget < 2:
            raise ValueError(f"h2o needs a budget of at least 2 tokens per KV head, got {budget}")
        self.budget, self.dtype = budget, dtype
        self.start()

    def start(self) -> None:
        """No attention seen, nothing evicted."""
        self.evicting = False
        self.drawn: dict[int, torch.Tensor] = {}
        self.held: dict[int, torch.Tensor] = {}

    def prompt_done(self) -> None:
        """Evict for the first time."""
        self.evicting = True
        for layer in self.drawn:
            self._evict(layer)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Method.attend."""
        num_heads, num_queries, num_keys = key.shape[1], query.shape[2], key.shape[2]
        new = num_keys - self.drawn[layer].shape[1] if layer in self.drawn else num_keys
        no_draw = torch.zeros(num_heads, new)
        all_held = torch.ones(num_heads, new, dtype=torch.bool)
        drawn = torch.cat([self.drawn.get(layer, no_draw[:, :0]), no_draw], 1)
        held = torch.cat([self.held.get(layer, all_held[:, :0]), all_held], 1)

        position = torch.arange(num_keys)
        causal = position <= position[num_keys - num_queries :, None]
        rows = query[0].unflatten(0, (num_heads, -1)).float()  # [Hkv, group, Q, D]
        keys, values = stored(key[0], self.dtype), stored(value[0], self.dtype)
        logits = rows @ keys.float().unsqueeze(1).transpose(-1, -2) * scale
        logits.masked_fill_(~(causal & held[:, None])[:, None], float("-inf"))
        weights = logits.softmax(-1)
        self.drawn[layer] = drawn + weights.sum((1, 2))
        self.held[layer] = held
        if self.evicting:
            self._evict(layer)
        output = weights @ values.float().unsqueeze(1)
        return output.flatten(0, 1)[None].to(query.dtype)

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
    return HeadRule(policy.sink, policy.window, head_class.block_tokens)


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
