"""Run a Hugging Face model while a method decides what its KV heads see."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_headaware.eval.cache import StoredCache
from vllm_headaware.eval.methods import Method
from vllm_headaware.profile.probe import watch_attention

CHUNK = 512
"""Prompt tokens computed at a time; bounds memory, changes no result."""


@dataclass
class Reading:
    """A prompt that has been computed.

    Attributes:
        cache: keys and values of all its tokens.
        logits: [1, vocabulary], what the model expects next.
    """

    cache: StoredCache
    logits: torch.Tensor


def generate(model: Any, method: Method, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """The most likely answer, token by token, without the end-of-text token that ends it.

    Args:
        model: a Hugging Face decoder in eval mode.
        prompt: token ids, at least one.
    """
    ((_, reading),) = read(model, {"": method}, prompt)
    return answer(model, method, reading, max_new_tokens)


@torch.inference_mode()
def read(
    model: Any, methods: Mapping[str, Method], prompt: Sequence[int]
) -> Iterator[tuple[str, Reading]]:
    """Compute a prompt for several methods; those whose readers read it alike share the work.

    A method's reading is valid until the next one is asked for.
    """
    alike: dict[Hashable, list[str]] = {}
    for name, method in methods.items():
        alike.setdefault(method.reader.reads(len(prompt)), []).append(name)
    for names in alike.values():
        own = [methods[name] for name in names]
        shared = _read(model, own, prompt)
        for name, method in zip(names, own, strict=True):
            alone = len(own) == 1 and method.formats == shared.cache.formats
            cache = shared.cache if alone else shared.cache.copy_to(method.formats)
            yield name, Reading(cache, shared.logits)


@torch.inference_mode()
def answer(model: Any, method: Method, reading: Reading, max_new_tokens: int) -> list[int]:
    """How the model goes on after a prompt that `method` has read; see generate()."""
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    tokens: list[int] = []
    logits = reading.logits
    with watch_attention(model, method.attend):
        while len(tokens) < max_new_tokens:
            token = int(logits[-1].argmax())
            if token in ends:
                break
            tokens.append(token)
            if len(tokens) < max_new_tokens:
                logits = _step(model, reading.cache, [token], 1)
    return tokens


@torch.inference_mode()
def continuation_logprobs(
    model: Any, method: Method, reading: Reading, continuation: Sequence[int]
) -> torch.Tensor:
    """What the model expects at every token of a given continuation.

    Returns:
        float32 [len(continuation), vocabulary], log probabilities in nats.
    """
    more = list(continuation[:-1])
    pieces = [more] if method.by_position else [[token] for token in more]
    with watch_attention(model, method.attend):
        rest = [_step(model, reading.cache, piece, len(piece)) for piece in pieces if piece]
    logits = [reading.logits, *rest]
    return torch.cat(logits).float().log_softmax(-1)


def _read(model: Any, methods: Sequence[Method], prompt: Sequence[int]) -> Reading:
    """Compute a prompt with the first method's reader while all of them look on."""
    reader = methods[0].reader
    for method in (reader, *methods):
        method.start()

    def attend(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        for method in methods:
            method.saw(layer, query, key, scale)
        return reader.attend(layer, query, key, value, scale)

    cache = StoredCache(reader.formats)
    with watch_attention(model, attend):
        for begin in range(0, len(prompt), CHUNK):
            logits = _step(model, cache, prompt[begin : begin + CHUNK], 1)
    for method in (reader, *methods):
        method.prompt_done()
    return Reading(cache, logits)


def _step(model: Any, cache: StoredCache, tokens: Sequence[int], keep: int) -> torch.Tensor:
    """Logits [keep, vocabulary] after the last `keep` of some more tokens."""
    output = model(torch.tensor([list(tokens)]), past_key_values=cache, logits_to_keep=keep)
    return output.logits[0]
