"""Run a Hugging Face model while a method decides what its KV heads see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from vllm_headaware.eval.methods import Method
from vllm_headaware.profile.probe import watch_attention

CHUNK = 512
"""Prompt tokens computed at a time; bounds memory, changes no result."""


@torch.inference_mode()
def generate(model: Any, method: Method, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """The most likely answer, token by token, without the end-of-text token that ends it.

    Args:
        model: a Hugging Face decoder in eval mode.
        prompt: token ids, at least one.
    """
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    answer: list[int] = []
    with watch_attention(model, method.attend):
        cache, logits = _read(model, method, prompt)
        while len(answer) < max_new_tokens:
            token = int(logits[-1].argmax())
            if token in ends:
                break
            answer.append(token)
            logits = _step(model, cache, [token], 1)
    return answer


@torch.inference_mode()
def continuation_logprobs(
    model: Any, method: Method, prompt: Sequence[int], continuation: Sequence[int]
) -> torch.Tensor:
    """What the model expects at every token of a given continuation.

    Returns:
        float32 [len(continuation), vocabulary], log probabilities in nats.
    """
    with watch_attention(model, method.attend):
        cache, first = _read(model, method, prompt)
        rest = _step(model, cache, continuation[:-1], len(continuation) - 1)
    return torch.cat([first, rest]).float().log_softmax(-1)


def _read(model: Any, method: Method, prompt: Sequence[int]) -> tuple[DynamicCache, torch.Tensor]:
    """Compute a prompt; the cache, and the logits [1, vocabulary] after its last token."""
    method.start()
    cache = DynamicCache()
    for begin in range(0, len(prompt), CHUNK):
        logits = _step(model, cache, prompt[begin : begin + CHUNK], 1)
    method.prompt_done()
    return cache, logits


def _step(model: Any, cache: DynamicCache, tokens: Sequence[int], keep: int) -> torch.Tensor:
    """Logits [keep, vocabulary] after the last `keep` of some more tokens."""
    output = model(torch.tensor([list(tokens)]), past_key_values=cache, logits_to_keep=keep)
    return output.logits[0]
