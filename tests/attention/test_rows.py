"""Row cutting shows every query exactly the tokens of the rule, however it is chunked."""

import random

import pytest
import torch

from vllm_headaware.attention.rows import WindowRule, cut_rows


def visible_tokens(
    position: int, rule: WindowRule, prompt: int = 0, reading: int | None = None
) -> set[int]:
    """The rule, spelled out: sinks rounded up, window start rounded down to its block."""
    sinks = -(-rule.sink // rule.block) * rule.block
    window = reading if position < prompt and reading is not None else rule.window
    start = max(position - window + 1, 0) if window > 0 else -window
    start = start // rule.block * rule.block
    return {j for j in range(position + 1) if j < sinks or j >= start}


def seen_through_rows(
    rule: WindowRule,
    chunks: list[tuple[int, int]],
    prompts: list[int] | None = None,
    reading: int | None = None,
) -> dict[tuple[int, int], set]:
    """What each (request, position) sees; a chunk is (tokens before the step, queries)."""
    of_prompt = prompts or [0] * len(chunks)
    starts = torch.tensor([0, *(n for _, n in chunks)]).cumsum(0).int()
    ends = torch.tensor([before + n for before, n in chunks]).int()
    max_blocks = -(-int(ends.max()) // rule.block)
    # Block ids say whose they are and where they stand; hidden ones are poisoned below.
    table = torch.arange(1, len(chunks) * max_blocks + 1).view(len(chunks), max_blocks).int()
    origin = {int(table[r, b]): (r, b) for r in range(len(chunks)) for b in range(max_blocks)}
    for request, (before, n) in enumerate(chunks):
        own = of_prompt[request]
        seen_by = (visible_tokens(p, rule, own, reading) for p in range(before, before + n))
        needed = set().union(*seen_by, set())
        for block in range(max_blocks):
            if n and block not in {j // rule.block for j in needed}:
                table[request, block] = 0
    prompt_lens = None if prompts is None else torch.tensor(prompts).int()
    wide = None if reading is None else torch.full_like(ends, reading)
    rows = cut_rows(rule, starts, ends, table, reading_windows=wide, prompt_lens=prompt_lens)

    owner = [(r, before + i) for r, (before, n) in enumerate(chunks) for i in range(n)]
    seen: dict[tuple[int, int], set] = {}
    for row in range(rows.num_rows):
        first, last = int(rows.query_start_loc[row]), int(rows.query_start_loc[row + 1])
        length = int(rows.seq_lens[row])
        for token in range(first, last):
            request, position = owner[token]
            count = length - (last - 1 - token)
            tokens: list[int] = []
            for block in rows.block_table[row, : -(-length // rule.block)].tolist():
                assert block != 0, "a row lists a block the rule hides from all of its queries"
                assert origin[block][0] == request
                tokens += range(origin[block][1] * rule.block, (origin[block][1] + 1) * rule.block)
            seen[request, position] = set(tokens[:count])
    assert rows.query_start_loc[-1] == starts[-1]
    return seen


@pytest.mark.parametrize(
    ("rule", "reading"),
    [
        (WindowRule(0, 1, 32), None),
        (WindowRule(1, 33, 32), None),
        (WindowRule(64, 256, 32), None),
        (WindowRule(16, 97, 32), None),
        (WindowRule(100, 64, 96), None),
        (WindowRule(0, 5, 1), None),
        (WindowRule(3, 7, 2), None),
        (WindowRule(40, 50, 32), 200),
        (WindowRule(0, 5, 2), 300),
        (WindowRule(0, 5, 2), 0),
        (WindowRule(40, 50, 32), -96),
        (WindowRule(40, -64, 32), -32),
    ],
    ids=str,
)
def test_queries_see_the_rule(rule: WindowRule, reading: int | None) -> None:
    rng, first = random.Random(repr(rule)), max(-(reading or 0), -rule.window, 0)
    for _ in range(20):
        chunks = [
            (
                rng.choice([first, rng.randrange(first, 700)]),
                rng.choice([0, 1, 1, rng.randrange(1, 400)]),
            )
            for _ in range(rng.choice([1, 3, 17]))
        ]
        if not any(n for _, n in chunks):
            continue
        prompts = [rng.choice([0, b, b + n // 2, b + n, rng.randrange(900)]) for b, n in chunks]
        for own in (None, prompts) if reading is not None else (None,):
            seen = seen_through_rows(rule, chunks, own, reading)
            assert len(seen) == sum(n for _, n in chunks)
            for (request, position), tokens in seen.items():
                wanted = visible_tokens(position, rule, own[request] if own else 0, reading)
                assert tokens == wanted, (request, position)


def test_decode_is_one_row_per_request() -> None:
    rule = WindowRule(64, 256, 32)
    ends = torch.tensor([1, 97, 5000], dtype=torch.int32)
    table = torch.arange(3 * 200, dtype=torch.int32).view(3, 200)
    rows = cut_rows(rule, torch.arange(4, dtype=torch.int32), ends, table)
    assert rows.num_rows == 3
    assert rows.seq_lens.tolist()[:2] == [1, 97]
    assert rows.seq_lens[2] <= 64 + 256 + 32


def test_a_step_without_queries_has_no_rows() -> None:
    rows = cut_rows(
        WindowRule(4, 8, 4),
        torch.zeros(3, dtype=torch.int32),
        torch.tensor([5, 9], dtype=torch.int32),
        torch.ones(2, 3, dtype=torch.int32),
    )
    assert rows.num_rows == 0
    assert rows.query_start_loc.tolist() == [0]


def test_non_contiguous_inputs() -> None:
    rule = WindowRule(3, 7, 2)
    ends = torch.tensor([40, 0, 12, 0], dtype=torch.int32)[::2]
    starts = torch.tensor([0, 9, 4, 9, 5, 9], dtype=torch.int32)[::2]
    table = torch.arange(1, 81, dtype=torch.int32).view(20, 4).t()[::2]
    rows = cut_rows(rule, starts, ends, table)
    dense = cut_rows(rule, starts.contiguous(), ends.contiguous(), table.contiguous())
    assert torch.equal(rows.block_table, dense.block_table)
    assert torch.equal(rows.seq_lens, dense.seq_lens)
