"""The work of a step: pieces of requests that decode, tiles of those that are read.

Made once a step on the device and read by all layers. Where a request is cut depends on its own
length and window alone, so its result does not depend on its batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_headaware.kernels.triton.classes import numbers, one_of
from vllm_headaware.kernels.triton.load import COUNTS
from vllm_headaware.kernels.triton.rule import first_seen, gap_before, window_at

ITEM = tl.constexpr(4)
"""Numbers of a piece: its request, the places of its first token and of that after its last,
counted without hidden ones, and the first token that its window shows."""
PIECE = 512
"""Least visible tokens of a piece."""


@triton.jit
def piece_tokens(visible, MOST_PIECES: tl.constexpr, PIECE: tl.constexpr):
    """Tokens of every piece but the last of a request with so many visible tokens."""
    share = (visible + MOST_PIECES - 1) // MOST_PIECES
    return tl.maximum((share + 31) // 32 * 32, PIECE)


@triton.jit(do_not_specialize=COUNTS)
def list_work(
    query_start, lens, windows, reading, prompts, slots, items, starts, tiles, tile_count,
    num_requests, layout,
    CLASSES: tl.constexpr, MOST_PIECES: tl.constexpr, PIECE: tl.constexpr, QUERIES: tl.constexpr,
    MOST_ITEMS: tl.constexpr, REQUESTS: tl.constexpr,
):  # fmt: skip
    """Grid [CLASSES + 1]: the pieces of a class each, and last the tiles.

    Args:
        query_start: int32 [num_requests + 1].
        lens, windows, reading: a tuple of int32 tensors, one a class: [num_requests], [slots],
            [slots].
        prompts: int32 [slots].
        slots: int32 [num_requests].
        items: int32 [CLASSES, MOST_ITEMS, ITEM].
        starts: int32 [CLASSES, REQUESTS + 1], first item of each request; the count at its end.
        tiles: int32 [most tiles, 2], request and its first query.
        tile_count: int32 [1].
        layout: of any layer; sinks and blocks are those of all (classes.py).
    """
    c = tl.program_id(0)
    row = tl.arange(0, REQUESTS)
    there = row < num_requests
    begin = tl.load(query_start + row, mask=there, other=0)
    queries = tl.load(query_start + row + 1, mask=there, other=0) - begin
    if c == CLASSES:
        own = tl.where(queries > 1, (queries + QUERIES - 1) // QUERIES, 0)
        ends = tl.cumsum(own, 0)
        tl.store(tile_count + row * 0, tl.sum(own, 0), mask=row == 0)
        for tile in range(0, tl.max(own, 0)):
            place = 2 * (ends - own + tile)
            tl.store(tiles + place, row, mask=tile < own)
            tl.store(tiles + place + 1, tile * QUERIES, mask=tile < own)
    else:
        _, _, _, _, sink, _, round, _ = numbers(c, layout)
        length = tl.load(one_of(c, lens, CLASSES) + row, mask=there, other=0)
        slot = tl.load(slots + row, mask=there, other=0)
        decodes = (queries == 1) & (length > 0)
        window = window_at(
            length - 1, slot, one_of(c, windows, CLASSES), one_of(c, reading, CLASSES), prompts
        )
        start = first_seen(length - 1, window, round)
        visible = tl.where(decodes, length - gap_before(start, sink), 0)
        each = piece_tokens(visible, MOST_PIECES, PIECE)
        pieces = (visible + each - 1) // each
        ends = tl.cumsum(pieces, 0)
        firsts = starts + c * (REQUESTS + 1)
        tl.store(firsts + row, ends - pieces, mask=there)
        tl.store(firsts + num_requests + row * 0, tl.sum(pieces, 0), mask=row == 0)
        for piece in range(0, tl.max(pieces, 0)):
            place = items + (c * MOST_ITEMS + ends - pieces + piece) * ITEM
            begin = piece * each
            tl.store(place, row, mask=piece < pieces)
            tl.store(place + 1, begin, mask=piece < pieces)
            tl.store(place + 2, tl.minimum(begin + each, visible), mask=piece < pieces)
            tl.store(place + 3, start, mask=piece < pieces)
