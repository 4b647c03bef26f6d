"""What a step of the Triton kernels needs: requests as classes see them, the work list, room for
partial results. Allocated once, so that addresses stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from vllm_headaware.kernels.reference import hadamard
from vllm_headaware.kernels.triton.shape import Shape
from vllm_headaware.kernels.triton.work import ITEM, PIECE, list_work

MOST_PIECES = 64
"""Most pieces of a request."""
PROGRAMS = 32
"""Of `decode`, for each multiprocessor: more than run at once, so that a device evens out pieces of
unequal lengths by itself."""
MOST_PARTIAL_BYTES = 2**28
"""Partial results take at most so much; with many requests and heads there are fewer pieces."""


@dataclass(frozen=True)
class ClassStep:
    """The requests of a step as one head class sees them. All int32.

    Attributes:
        query_start: [num_requests + 1], offsets into the step's tokens.
        seq_lens: [num_requests], tokens of each request that the class holds, this step's included.
        block_table: [num_requests, width], rows strided; entries of hidden blocks are never read.
        windows: [slots], tokens; 0 or less: everything from token -window on, and the sinks. None:
            `window` for all.
        reading_windows: [slots], the same for queries of a prompt; None: as windows.
        window: of all requests where `windows` is None; None = unlimited.
    """

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    windows: torch.Tensor | None = None
    reading_windows: torch.Tensor | None = None
    window: int | None = None


class Workspace:
    """Room for the steps of a model, shared by its layers.

    Args:
        max_requests: of a step.
        max_tokens: of a step.
        max_length: tokens of the longest request.
        num_query_heads, num_kv_heads, head_size: of a layer (of this rank).
        num_classes: head classes.
        piece: least visible tokens of a piece.

    Attributes:
        compiled: whether a step of every kind has been launched.
    """

    def __init__(
        self,
        *,
        max_requests: int,
        max_tokens: int,
        max_length: int,
        num_query_heads: int,
        num_kv_heads: int,
        head_size: int,
        num_classes: int,
        device: torch.device,
        piece: int = PIECE,
    ) -> None:
        self.piece, self.requests = piece, triton.next_power_of_2(max_requests)
        group = num_query_heads // num_kv_heads
        each = max_requests * num_query_heads * (head_size + 2) * 4
        longest = -(-max_length // piece)
        self.most_pieces = max(min(MOST_PIECES, longest, MOST_PARTIAL_BYTES // each), 1)
        places = max_requests * num_kv_heads * self.most_pieces

        def room(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.partial = room(places, group, head_size)
        self.partial_most, self.partial_sums = room(places, group), room(places, group)
        self.q8 = room(max_tokens, num_query_heads * head_size, dtype=torch.int8)
        self.q_step, self.q_sum = (
            room(max_tokens, num_query_heads),
            room(max_tokens, num_query_heads),
        )
        self.items = room(
            num_classes, max_requests * self.most_pieces, ITEM.value, dtype=torch.int32
        )
        self.starts = room(num_classes, self.requests + 1, dtype=torch.int32)
        self.tiles = room(max_tokens + max_requests, 2, dtype=torch.int32)
        self.tile_count = room(1, dtype=torch.int32)
        self.identity = torch.arange(max_requests, dtype=torch.int32, device=device)
        self.zeros = room(max_requests, dtype=torch.int32)
        self._filled: dict[int, torch.Tensor] = {0: self.zeros}
        signs = hadamard(head_size)
        self.factor = float(signs.abs().max())
        self.signs = (signs / self.factor).round().to(device, torch.bfloat16)
        self.search_steps = self.requests.bit_length()
        self.max_requests, self.device = max_requests, device
        self.compiled = False
        units = 1
        if device.type == "cuda":
            units = torch.cuda.get_device_properties(device).multi_processor_count
        self.programs = PROGRAMS * units

    @property
    def bytes(self) -> int:
        """What it takes on the device."""
        return sum(x.nbytes for x in vars(self).values() if isinstance(x, torch.Tensor))

    def filled(self, value: int) -> torch.Tensor:
        """int32 [max_requests] of one value, always the same tensor."""
        if value not in self._filled:
            self._filled[value] = self.zeros + value
        return self._filled[value]


class StepWork:
    """A step, ready for every layer.

    Args:
        shape, layout: of the layers; of layout only what all have alike is read.
        steps: one per class.
        prompt_lens: int32 [slots], tokens: earlier queries are of the prompt. None: no query is.
        slots: int32 [num_requests], where a request's windows and prompt length lie; None: in
            order. Needed where these have other than one row a request.
        max_queries: most queries of a request: with 1 nothing is read.
    """

    def __init__(
        self,
        room: Workspace,
        shape: Shape,
        layout: torch.Tensor,
        steps: Sequence[ClassStep],
        *,
        prompt_lens: torch.Tensor | None = None,
        slots: torch.Tensor | None = None,
        max_queries: int,
    ) -> None:
        self.room, self.steps = room, steps
        self.reads = max_queries > 1
        self.slots = room.identity if slots is None else slots
        self.prompts = room.zeros if prompt_lens is None else prompt_lens
        self.windows = tuple(
            room.filled(s.window or 0) if s.windows is None else s.windows for s in steps
        )
        self.reading = tuple(
            own if s.reading_windows is None else s.reading_windows
            for own, s in zip(self.windows, steps, strict=True)
        )
        if slots is None:
            short = [x for x in (self.prompts, *self.windows) if len(x) < len(steps[0].seq_lens)]
            if short:
                raise ValueError("windows and prompt lengths need one row a request, or slots")
        list_work[(len(steps) + 1,)](
            steps[0].query_start, tuple(s.seq_lens for s in steps), self.windows, self.reading,
            self.prompts, self.slots, room.items, room.starts, room.tiles, room.tile_count,
            steps[0].seq_lens.shape[0], layout, CLASSES=len(steps),
            MOST_PIECES=room.most_pieces, PIECE=room.piece, QUERIES=shape.queries,
            MOST_ITEMS=room.items.shape[1], REQUESTS=room.requests,
        )  # fmt: skip
