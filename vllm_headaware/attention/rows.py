"""Row cutting: a sink + window rule on an attention op that only knows causal attention.

Every request's queries are cut where the first visible block of their window changes, and each
piece becomes a row of its own: its block table lists the sink blocks, then the blocks of its
window up to its last query, and its sequence length counts just those tokens. Causal attention
over such a row is the visibility rule, whatever the chunking. Keys keep their rotary positions,
since nothing is renumbered but the row's own length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

UNLIMITED = 2**40
"""A window in tokens that hides nothing."""


@dataclass(frozen=True)
class WindowRule:
    """Tokens `sink` and `window` of a class, and the tokens per block they are rounded to."""

    sink: int
    window: int
    block: int

    @property
    def sink_blocks(self) -> int:
        return -(-self.sink // self.block)


@dataclass(frozen=True)
class Rows:
    """A batch of rows for a causal paged attention op.

    Attributes:
        query_start_loc: int32 [num_rows + 1], offsets into the step's tokens.
        seq_lens: int32 [num_rows], visible tokens including the row's own queries.
        block_table: int32 [num_rows, width], visible blocks in order; 0 beyond a row's end.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor

    @property
    def num_rows(self) -> int:
        return self.seq_lens.shape[0]


def cut_rows(
    rule: WindowRule,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor,
    own_windows: torch.Tensor | None = None,
    reading_windows: torch.Tensor | None = None,
    prompt_lens: torch.Tensor | None = None,
) -> Rows:
    """Cut the requests of a step into rows.

    Args:
        rule: what the class sees.
        query_start_loc: int32 [num_requests + 1], offsets into the step's tokens.
        seq_lens: int32 [num_requests], tokens of each request including this step's queries.
        block_table: int32 [num_requests, max_blocks]; entries the rule hides may be anything.
        own_windows: int32 [num_requests], tokens; 0 or less: everything from token -window on, and
            the sinks. None: the rule's for all.
        reading_windows: int32 [num_requests], the same for queries of a prompt; None: as others.
        prompt_lens: int32 [num_requests], tokens: earlier queries are of the prompt. None: no query
            is.

    All tensors are on the CPU. Requests without queries give no row.
    """
    starts = query_start_loc.numpy().astype(np.int64)
    ends = seq_lens.numpy().astype(np.int64)
    windows = np.full(len(ends), rule.window, dtype=np.int64)
    if own_windows is not None:
        windows = own_windows.numpy().astype(np.int64)
    table = block_table.numpy()
    begin = ends - np.diff(starts)
    reading = windows if reading_windows is None else reading_windows.numpy().astype(np.int64)
    if prompt_lens is not None and (prompt_lens.numpy() > begin).any():
        # Each request once with the queries of its prompt, and once with the others.
        turn = np.clip(prompt_lens.numpy(), begin, ends)
        lens = np.stack([turn - begin, ends - turn], 1).ravel()
        starts = np.append(0, np.cumsum(lens)) + starts[0]
        ends = np.stack([turn, ends], 1).ravel()
        windows = np.stack([reading, windows], 1).ravel()
        table = table.repeat(2, axis=0)
    query_lens = np.diff(starts)

    # First block each request's first and last query see by their window; sinks join it to the
    # start of the sequence as long as it is not past them.
    first_query = ends - query_lens
    first_seen = _first_block(rule, windows, first_query)
    last_seen = _first_block(rule, windows, ends - 1)
    pieces = np.where(query_lens > 0, last_seen - first_seen + 1, 0)

    request = np.repeat(np.arange(len(ends)), pieces)
    nth = np.arange(len(request)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    seen = first_seen[request] + nth
    window = windows[request]
    # A piece ends before the first query that sees one block less.
    narrow = np.where(window > 0, window, UNLIMITED)
    piece_end = np.minimum((seen + 1) * rule.block + narrow - 1, ends[request])
    row_starts = starts[request] + np.where(
        nth == 0, 0, seen * rule.block + narrow - 1 - first_query[request]
    )

    sinks = rule.sink_blocks
    hidden = seen - sinks
    row_lens = piece_end - hidden * rule.block
    num_blocks = -(-row_lens // rule.block)
    width = int(num_blocks.max(initial=1))
    column = np.arange(width)
    source = column + np.where(column >= sinks, hidden[:, None], 0)
    visible = column < num_blocks[:, None]
    # hidden is 0 where sinks and window still touch, so `source` is the identity there.
    rows = table[request[:, None], np.where(visible, source, 0)]
    return Rows(
        query_start_loc=torch.from_numpy(np.append(row_starts, starts[-1]).astype(np.int32)),
        seq_lens=torch.from_numpy(row_lens.astype(np.int32)),
        block_table=torch.from_numpy(np.where(visible, rows, 0).astype(np.int32)),
    )


def _first_block(rule: WindowRule, window: np.ndarray, position: np.ndarray) -> np.ndarray:
    """First block a query sees by its window, but no earlier than where the sinks end."""
    oldest = np.where(window > 0, np.maximum(position - window + 1, 0), -window)
    return np.maximum(oldest // rule.block, rule.sink_blocks)
