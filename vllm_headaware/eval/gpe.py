"""Group position encoding for streaming input (arXiv 2505.16983).

Source and target tokens count positions apart: the source 0, 1, 2, ..., the target from an offset
phi. Source never attends to target. So source that arrives late moves no target token, and nothing
that is cached has to be computed again.

A target token is predicted by the one before it, so what has been read when token t is written is
what came before token t - 1 was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from vllm_headaware.profile.probe import full_attention, watch_attention


@dataclass(frozen=True)
class Stream:
    """Source and target in the order in which they are computed.

    Attributes:
        tokens: int64 [T], ids.
        positions: int64 [T], position ids.
        target: bool [T].
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    target: torch.Tensor


def interleave(
    source: Sequence[int], target: Sequence[int], reads: Sequence[int], phi: int = 0
) -> Stream:
    """The order in which a stream arrives and is written.

    Args:
        source, target: token ids.
        reads: [len(target)], source tokens that come before each target token; not falling.
        phi: position of the first target token, at least 0.

    Raises:
        ValueError: reads that fall or do not fit the source, or a negative phi.
    """
    if phi < 0:
        raise ValueError(f"phi must be 0 or more, got {phi}")
    steps = [0, *reads]
    if len(reads) != len(target) or steps != sorted(steps) or steps[-1] > len(source):
        raise ValueError(f"{list(reads)} are not reads of {len(source)} tokens by {len(target)}")
    order: list[tuple[int, int, bool]] = []
    for t, token in enumerate(target):
        order += [(source[s], s, False) for s in range(steps[t], steps[t + 1])]
        order.append((token, phi + t, True))
    order += [(source[s], s, False) for s in range(steps[-1], len(source))]
    tokens, positions, is_target = zip(*order, strict=True)
    return Stream(torch.tensor(tokens), torch.tensor(positions), torch.tensor(is_target))


def visible_in_stream(target: torch.Tensor) -> torch.Tensor:
    """bool [T, T]: which token (column) each one (row) sees.

    Everything that came before it and itself, except that source does not see target.

    Args:
        target: bool [T], in the order in which tokens came.
    """
    came_before = torch.ones(len(target), len(target), dtype=torch.bool).tril()
    return came_before & (target[:, None] | ~target[None])


class StreamCache:
    """Keys and values of a stream, which is only ever added to.

    Args:
        model: a Hugging Face decoder in eval mode with rotary positions.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, DynamicCache()
        self.target = torch.zeros(0, dtype=torch.bool)

    @torch.inference_mode()
    def push(self, stream: Stream) -> torch.Tensor:
        """Compute some more tokens; returns the logits after each, float32 [T, vocabulary]."""
        self.target = torch.cat([self.target, stream.target])
        visible = visible_in_stream(self.target)[-len(stream.target) :]

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
        ) -> torch.Tensor:
            return full_attention(query, key, value, scale, visible)

        with watch_attention(self.model, attend):
            output = self.model(
                stream.tokens[None],
                position_ids=stream.positions[None],
                past_key_values=self.cache,
            )
        return output.logits[0].float()

    def push_run(self, tokens: Sequence[int], position: int, target: bool) -> torch.Tensor:
        """push() of consecutive tokens of one side, the first at `position`."""
        count = len(tokens)
        positions = torch.arange(position, position + count)
        return self.push(Stream(torch.tensor(tokens), positions, torch.full((count,), target)))


def target_logprobs(logits: torch.Tensor, stream: Stream, given: int) -> torch.Tensor:
    """Log probabilities after every target token that predicts another: float32 [N, vocabulary].

    Args:
        logits: after every token of the stream.
        given: target tokens at the start that are not predicted, at least 1.
    """
    places = stream.target.nonzero().flatten()
    return logits[places[given - 1 : -1]].log_softmax(-1)


def write(
    model: Any, source: Sequence[int], given: Sequence[int], k: int, *, phi: int = 0, limit: int
) -> tuple[list[int], list[int]]:
    """Read and write in turns: k source tokens first, then one for every target token.

    Args:
        given: target tokens that are not written but stand at its start, at least one.
        limit: most tokens to write; the model may end earlier.

    Returns:
        The token ids written, and how many source tokens had been read for each.
    """
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    cache = StreamCache(model)
    read = min(k, len(source))
    cache.push_run(source[:read], 0, False)
    logits = cache.push_run(given, phi, True)
    written: list[int] = []
    reads: list[int] = []
    while len(written) < limit:
        token = int(logits[-1].argmax())
        if token in ends:
            break
        written.append(token)
        reads.append(read)
        if read < len(source):
            cache.push_run(source[read : read + 1], read, False)
            read += 1
        logits = cache.push_run([token], phi + len(given) + len(written) - 1, True)
    return written, reads
