"""A Hugging Face model whose KV heads see what the visibility rule says: the oracle for outputs.

transformers computes everything but attention; attention is kernels/reference.py. vLLM is not
involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
)

from vllm_headaware.kernels.reference import UNLIMITED, HeadRule, attention
from vllm_headaware.plan import Plan
from vllm_headaware.plan.windows import Windows

NAME = "vllm_headaware_reference"
CHUNK = 512

HeadRules = Sequence[Sequence[HeadRule]]

KERNEL_NOISE = 3e-4
"""`noise` of a model whose attention is off by what the int8 kernels may be: a third of the largest
error that tests/kernels allows."""


def rules_of(
    plan: Plan,
    windows: Windows | None = None,
    changes: Sequence[tuple[int, Sequence[int | None]]] = (),
) -> list[list[HeadRule]]:
    """The rule of every [layer][KV head]: the plan's, or that of a request with own windows.

    Args:
        changes: (position, windows) in order: what a request had from a position on.
    """
    by_class = [
        HeadRule(
            c.policy.sink,
            window,
            c.block_tokens,
            c.policy.dtype,
            c.policy.prefill_window,
            tuple((start, own[index]) for start, own in changes),
            c.policy.exact,
        )
        for index, (c, window) in enumerate(zip(plan.classes, windows or plan.windows, strict=True))
    ]
    return [[by_class[index] for index in row] for row in plan.assignment]


class HFReference:
    """A causal language model under one rule per (layer, KV head).

    Args:
        model_dir: a Hugging Face model folder.
        rules: [num_layers][num_kv_heads]; everything unlimited when left out. May be set again.
        dtype: of weights and activations.
        noise: disturb what attention puts out, so as to see what an error of that size may change:
            standard deviation, as a share of a row's mean magnitude; drawn anew at every call.
    """

    def __init__(
        self,
        model_dir: str | Path,
        rules: HeadRules | None = None,
        dtype: torch.dtype = torch.float32,
        noise: float = 0.0,
    ) -> None:
        seeing = hasattr(AutoConfig.from_pretrained(model_dir), "vision_config")
        kind = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
        kinds: Any = {"text_config": NAME, "vision_config": "eager"} if seeing else NAME
        model = kind.from_pretrained(model_dir, dtype=dtype, attn_implementation=kinds)
        self.model = model.eval()
        self.layers = model.get_decoder().layers
        for layer in self.layers:
            layer.self_attn.reference_noise = noise
        self.rules = rules if rules is not None else self._unlimited()

    @property
    def rules(self) -> HeadRules:
        """[num_layers][num_kv_heads]."""
        return self._rules

    @rules.setter
    def rules(self, rules: HeadRules) -> None:
        config = self.model.config.get_text_config()
        shape = [len(layer) for layer in rules]
        if shape != [config.num_key_value_heads] * config.num_hidden_layers:
            raise ValueError(
                f"rules for {shape} KV heads given to a model of {config.num_hidden_layers} "
                f"layers with {config.num_key_value_heads} each"
            )
        self._rules = rules
        for layer, layer_rules in zip(self.layers, rules, strict=True):
            layer.self_attn.head_rules = layer_rules

    @torch.inference_mode()
    def logprobs(
        self,
        ids: Sequence[int],
        num_prompt: int | None = None,
        images: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """Log probabilities of what follows each position, float32 [num_tokens, vocab].

        Args:
            num_prompt: how many of the tokens are the prompt; all when None.
            images: what the model's forward pass takes besides token ids, whose places for images
                are within the first CHUNK.
        """
        num_prompt = len(ids) if num_prompt is None else num_prompt
        logits = self._logits(ids, DynamicCache(), num_prompt, images)
        return logits.float().log_softmax(-1)

    def lags(
        self,
        prompt_ids: Sequence[int],
        tokens: Sequence[int],
        images: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """By how much log probability each token lags behind the best at its place.

        Args:
            prompt_ids: what comes before them.
            tokens: one after the other; each is judged given those before it.
            images: as in logprobs().

        Returns:
            float32 [len(tokens)], 0 where a token is the first choice.
        """
        num_prompt = len(prompt_ids)
        logprobs = self.logprobs([*prompt_ids, *tokens], num_prompt, images)[num_prompt - 1 : -1]
        return logprobs.amax(1) - logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0]

    @torch.inference_mode()
    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The most likely continuation, token by token; end-of-text does not stop it."""
        cache, num_prompt = DynamicCache(), len(prompt_ids)
        tokens = [int(self._logits(prompt_ids, cache, num_prompt)[-1].argmax())]
        while len(tokens) < max_new_tokens:
            tokens.append(int(self._logits(tokens[-1:], cache, num_prompt)[-1].argmax()))
        return tokens

    def _logits(
        self,
        ids: Sequence[int],
        cache: DynamicCache,
        num_prompt: int,
        images: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """[len(ids), vocab], in chunks to bound memory; the cache keeps every key of every head."""
        for layer in self.layers:
            layer.self_attn.num_prompt = num_prompt
        logits = []
        for start in range(0, len(ids), CHUNK):
            chunk = torch.tensor([ids[start : start + CHUNK]])
            with_images = images if images and not start else {}
            logits.append(self.model(chunk, past_key_values=cache, **with_images).logits[0])
        return torch.cat(logits)

    def _unlimited(self) -> HeadRules:
        config = self.model.config.get_text_config()
        return [[UNLIMITED] * config.num_key_value_heads] * config.num_hidden_layers


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' form: [batch, heads, tokens, size] in, [batch, tokens, heads, size] out."""
    rows = torch.stack(
        [
            attention(
                q.transpose(0, 1),
                k.transpose(0, 1),
                v.transpose(0, 1),
                module.head_rules,
                scaling,
                num_prompt=module.num_prompt,
                soft_cap=softcap or 0.0,
                sink_logits=s_aux,
            )
            for q, k, v in zip(query, key, value, strict=True)
        ]
    )
    if module.reference_noise:
        size = module.reference_noise * rows.abs().mean(-1, keepdim=True)
        rows = rows + size * torch.randn_like(rows)
    return rows, None


AttentionInterface.register(NAME, _attention)
