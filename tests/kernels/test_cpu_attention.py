"""The native CPU kernels against the float64 reference of the visibility rule.

Everything around the real data is poison: blocks start as NaN bytes, outputs as NaN, rows are
strided through NaN. Quantised formats are checked twice: attention against exactly what the blocks
hold, and what the blocks hold against what was written. Their queries lie on the steps that
kernels round queries to, so that no rounding goes either way; any others have a test of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.kernels.blocks import read_block
from vllm_headaware.kernels.cpu.attention import ClassCache, ClassStep, LayerAttention
from vllm_headaware.kernels.cpu.library import INSTRUCTION_SETS, find_kernel
from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.kernels.reference import (
    UNLIMITED,
    HeadRule,
    asked,
    attention,
    stored,
    visible,
)

NUM_KV_HEADS = 3
OWNERS = ((1,), (0, 2))
"""KV heads of the unlimited class, and of the one with a window."""
LENGTHS = (5, 1, 70, 333, 700, 1500)
CHUNKS = (40, 3, 70, 64, 129, 1000)
QUANTISED = [name for name, kv_format in FORMATS.items() if kv_format.quantised]
BOUND = {
    **dict.fromkeys(("float32", "bfloat16", "float16"), 5e-6),
    **dict.fromkeys(QUANTISED, 1e-3),
}
"""Largest error on rows of unit variance, given what is stored: 16-bit weights cost the quantised
formats the difference."""
QUERY_STEP = 1 / 40


def available() -> list[str]:
    return [name for name in INSTRUCTION_SETS if find_kernel(name)]


class Batch:
    """Requests with random rows, served chunk by chunk through the kernels."""

    def __init__(
        self,
        kv_format: str,
        *,
        head_size: int = 64,
        group: int = 3,
        block: int = 64,
        rule: HeadRule | None = None,
        io: torch.dtype = torch.float32,
        lengths: tuple[int, ...] = LENGTHS,
        instruction_set: str | None = None,
        seed: int = 0,
        windows: tuple[int, ...] | None = None,
        reading: tuple[int, ...] | None = None,
        prompts: tuple[int, ...] | None = None,
        measured: bool = False,
        soft_cap: float = 0.0,
        sink_logits: bool = False,
    ) -> None:
        self.windows, self.reading, self.prompts = windows, reading, prompts
        self.measured = measured
        self.format, self.head_size, self.group, self.block = kv_format, head_size, group, block
        self.io, self.lengths = io, lengths
        # Quantised K and V are stored rotated.
        quantised = FORMATS[kv_format].quantised
        self.turn = _rotation(head_size) if quantised else torch.eye(head_size).double()
        self.rule = rule or HeadRule(sink=block, window=100, block=block)
        rng = torch.Generator().manual_seed(seed)
        self.soft_cap = soft_cap
        self.sink_logits = None
        if sink_logits:
            self.sink_logits = 3 * torch.randn(NUM_KV_HEADS * group, generator=rng)

        def rows(heads: int) -> list[torch.Tensor]:
            shapes = [(n, heads, head_size) for n in lengths]
            return [torch.randn(s, generator=rng).to(io).float() for s in shapes]

        self.q, self.k, self.v = rows(NUM_KV_HEADS * group), rows(NUM_KV_HEADS), rows(NUM_KV_HEADS)
        if quantised:
            self.q = [on_steps(q).to(io).float() for q in self.q]
        width = max(lengths) // block + 2
        needed = len(lengths) * width
        order = torch.randperm(2 * needed, generator=rng).to(torch.int32)
        self.tables = [part.view(len(lengths), width) for part in order.split(needed)]
        self.masses = [torch.zeros(table.shape) for table in self.tables]
        self.caches = []
        for own in OWNERS:
            share = len(own) * block * FORMATS[kv_format].token_bytes(head_size)
            raw = torch.full((2 * needed, share + 64), -1, dtype=torch.int8)
            self.caches.append(raw[:, :share].unflatten(1, (len(own), block, -1)))
        rule = self.rule
        self.layer = LayerAttention(
            num_query_heads=NUM_KV_HEADS * group,
            num_kv_heads=NUM_KV_HEADS,
            head_size=head_size,
            scale=head_size**-0.5,
            io_dtype=io,
            classes=[
                ClassCache(self.caches[0], OWNERS[0], kv_format),
                ClassCache(
                    self.caches[1],
                    OWNERS[1],
                    kv_format,
                    rule.sink,
                    rule.window,
                    rule.exact,
                ),
            ],
            soft_cap=soft_cap,
            sink_logits=self.sink_logits,
            instruction_set=instruction_set,
        )

    def serve(self, chunks: tuple[int, ...] = CHUNKS) -> list[torch.Tensor]:
        """All outputs, float32 [tokens, query heads, head_size] per request."""
        done = [0] * len(self.lengths)
        outputs = [torch.empty_like(q) for q in self.q]
        while any(at < n for at, n in zip(done, self.lengths, strict=True)):
            # The last five tokens of a request come one by one, as in decoding.
            take = [
                min(chunk, n - 5 - at) if n - at > 5 else min(1, n - at)
                for chunk, n, at in zip(chunks, self.lengths, done, strict=True)
            ]
            new = [slice(at, at + t) for at, t in zip(done, take, strict=True)]
            starts = torch.tensor([0, *take]).cumsum(0).to(torch.int32)
            seq_lens = torch.tensor([s.stop for s in new], dtype=torch.int32)
            q, k, v = (
                _strided(
                    torch.cat([rows[s] for rows, s in zip(part, new, strict=True)]).to(self.io)
                )
                for part in (self.q, self.k, self.v)
            )
            out = _strided(torch.full_like(q, float("nan")))
            by_request: list[Any] = [
                None if values is None else torch.tensor(values).int()
                for values in (self.windows, self.reading, self.prompts)
            ]
            masses = self.masses if self.measured else [None, None]
            steps = [
                ClassStep(starts, seq_lens, table, *own)
                for table, own in zip(
                    self.tables,
                    ([None] * 3 + [masses[0]], [*by_request, masses[1]]),
                    strict=True,
                )
            ]
            self.layer(q, k, v, out, steps)
            for index, s in enumerate(new):
                outputs[index][s] = out[starts[index] : starts[index + 1]].float()
                done[index] = s.stop
        return outputs

    def stored_rows(self, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a request as the blocks hold them, [tokens, KV heads, head_size]."""
        k, v = torch.empty_like(self.k[request]), torch.empty_like(self.v[request])
        for own, cache, table in zip(OWNERS, self.caches, self.tables, strict=True):
            for index, head in enumerate(own):
                for at in range(0, self.lengths[request], self.block):
                    share = cache[table[request, at // self.block], index].reshape(-1)
                    read = read_block(share, self.format, self.block, self.head_size)
                    n = min(self.block, self.lengths[request] - at)
                    k[at : at + n, head], v[at : at + n, head] = read[0][:n], read[1][:n]
        return k, v

    def rule_of(self, request: int) -> HeadRule:
        """The rule of the windowed class for one request."""
        rule = self.rule
        if self.windows is not None:
            rule = replace(rule, window=self.windows[request] or None)
        if self.reading is None:
            return rule
        turn = self.prompt_of(request)
        return replace(rule, changes=((0, self.reading[request]), (turn, rule.window)))

    def prompt_of(self, request: int) -> int:
        """How many tokens of a request are its prompt."""
        return 0 if self.prompts is None else self.prompts[request]

    def expected_mass(self, request: int, class_index: int) -> torch.Tensor:
        """Attention weights per block, float64 [width], all queries and heads of a class added."""
        k, _ = self.stored_rows(request)
        n, rule = self.lengths[request], (UNLIMITED, self.rule_of(request))[class_index]
        seen = visible(torch.arange(n), torch.arange(n), rule, self.prompt_of(request))
        mass = torch.zeros(self.tables[0].shape[1] * self.block, dtype=torch.float64)
        for head in OWNERS[class_index]:
            q = self.q[request][:, head * self.group : (head + 1) * self.group].double()
            logits = (
                torch.einsum("qhd,kd->hqk", q @ self.turn, k[:, head].double())
                * self.head_size**-0.5
            )
            mass[:n] += logits.masked_fill(~seen, float("-inf")).softmax(-1).sum((0, 1))
        return mass.view(-1, self.block).sum(1)

    def expected(self, request: int) -> torch.Tensor:
        """The float64 reference on what the blocks hold."""
        k, v = (rows.double() for rows in self.stored_rows(request))
        q = self.q[request].double() @ self.turn
        rules = [self.rule_of(request), UNLIMITED, self.rule_of(request)]
        out = attention(
            q,
            k,
            v,
            rules,
            self.head_size**-0.5,
            num_prompt=self.prompt_of(request),
            soft_cap=self.soft_cap,
            sink_logits=self.sink_logits,
        )
        return out @ self.turn


def _strided(rows: torch.Tensor) -> torch.Tensor:
    """The same rows, tokens far apart with NaN between them."""
    tokens, heads, size = rows.shape
    wide = torch.full((tokens, heads * size + 17), float("nan"), dtype=rows.dtype)
    view = wide[:, : heads * size].unflatten(1, (heads, size))
    view.copy_(rows)
    return view


def on_steps(q: torch.Tensor) -> torch.Tensor:
    """Rows that are multiples of QUERY_STEP when rotated, the largest 127 of them."""
    turn = _rotation(q.shape[-1]).float()
    steps = (q @ turn / QUERY_STEP).round().clamp(-127, 127)
    steps.scatter_(-1, steps.abs().argmax(-1, keepdim=True), 127.0)
    return steps * QUERY_STEP @ turn


def _rotation(size: int) -> torch.Tensor:
    """The Hadamard matrix of size & -size, repeated along the diagonal: Sylvester's doubling."""
    run = size & -size
    bits = torch.arange(run)
    parity = torch.tensor([[bin(int(a & b)).count("1") % 2 for b in bits] for a in bits])
    block = (1 - 2 * parity).double() / run**0.5
    return torch.block_diag(*[block] * (size // run))


def largest_error(batch: Batch, outputs: list[torch.Tensor]) -> float:
    errors = [(batch.expected(i) - out).abs().max().item() for i, out in enumerate(outputs)]
    assert all(error == error for error in errors), "NaN reached an output"
    return max(errors)


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("instruction_set", available())
def test_output_is_the_reference(kv_format: str, instruction_set: str) -> None:
    batch = Batch(kv_format, instruction_set=instruction_set)
    assert largest_error(batch, batch.serve()) < BOUND[kv_format]


@pytest.mark.parametrize("kv_format", QUANTISED)
@pytest.mark.parametrize("instruction_set", available())
def test_queries_are_rounded_to_8_bits(kv_format: str, instruction_set: str) -> None:
    batch = Batch(kv_format, instruction_set=instruction_set, lengths=(300,))
    rng = torch.Generator().manual_seed(1)
    batch.q[0] = torch.randn(batch.q[0].shape, generator=rng)
    outputs = batch.serve((300,))
    assert 2e-4 < largest_error(batch, outputs) < 3e-2, "no rounding, or too much"
    batch.q[0] = asked(batch.q[0], kv_format)
    error = (batch.expected(0) - outputs[0]).abs()
    # A number half way between two steps may go either way.
    bound = 2e-3 if kv_format == "int4" else BOUND[kv_format]
    assert (error < bound).float().mean() > 0.98


@pytest.mark.parametrize("instruction_set", available())
def test_many_small_weights_beside_one_keep_their_sum(instruction_set: str) -> None:
    """Their panel matters little to the row, and each of them is below a step of 8 bits."""
    batch = Batch("int8", lengths=(1280,), instruction_set=instruction_set)
    direction = on_steps(torch.randn(64, generator=torch.Generator().manual_seed(2)))
    batch.q[0][:] = direction
    of_one = direction.norm() ** 2 * 64**-0.5
    logits = torch.full((1280,), 3.0)
    logits[256:] = 3.0 - 6.2  # e^-6.2 is half a step of 255
    logits[256 + 9 :: 256] = 3.0
    batch.k[0][:] = (logits / of_one)[:, None, None] * direction
    batch.v[0][:256], batch.v[0][256:] = -1, 1
    assert largest_error(batch, batch.serve((1275,))) < BOUND["int8"]


@pytest.mark.parametrize(("head_size", "group"), [(32, 1), (96, 8), (128, 4), (256, 2), (64, 64)])
@pytest.mark.parametrize("kv_format", ["float32", *QUANTISED])
def test_other_shapes(kv_format: str, head_size: int, group: int) -> None:
    batch = Batch(kv_format, head_size=head_size, group=group, lengths=(3, 150), seed=head_size)
    assert largest_error(batch, batch.serve((2, 77))) < BOUND[kv_format]


@pytest.mark.parametrize(
    ("block", "rule"),
    [
        (32, HeadRule(0, 1, 32)),
        (32, HeadRule(32, 33, 32)),
        (96, HeadRule(192, 500, 96)),
        (160, HeadRule(160, 31, 160)),
    ],
)
def test_other_windows(block: int, rule: HeadRule) -> None:
    batch = Batch("float32", block=block, rule=rule)
    assert largest_error(batch, batch.serve()) < BOUND["float32"]


@pytest.mark.parametrize("kv_format", ["float32", "int4"])
def test_each_request_has_its_own_window(kv_format: str) -> None:
    batch = Batch(kv_format, windows=(7, 1, 0, 33, 260, 0))
    assert largest_error(batch, batch.serve()) < BOUND[kv_format]


@pytest.mark.parametrize("kv_format", ["float32", *QUANTISED])
@pytest.mark.parametrize("windows", [None, (7, 1, 0, 33, -128, 500)])
def test_a_prompt_is_read_with_wider_windows(
    kv_format: str, windows: tuple[int, ...] | None
) -> None:
    """Prompts end within a chunk, at its end, in the first token, and nowhere; they are read in
    full, by a window, or from a block on."""
    rule = HeadRule(64, 100, 64)
    prompts, reading = (3, 1, 70, 301, 695, 2000), (300, 0, 0, 300, 0, -64)
    batch = Batch(
        kv_format, rule=rule, windows=windows, reading=reading, prompts=prompts, measured=True
    )
    outputs = batch.serve()
    assert largest_error(batch, outputs) < BOUND[kv_format]
    for request in range(len(LENGTHS)):
        mass, expected = batch.masses[1][request], batch.expected_mass(request, 1)
        torch.testing.assert_close(mass.double(), expected, rtol=2e-3, atol=2e-3)
    if windows is None:
        batch.prompts = (0,) * len(LENGTHS)
        assert largest_error(batch, outputs) > 0.1, "the prompts must matter"


@pytest.mark.parametrize("kv_format", ["float32", *QUANTISED])
@pytest.mark.parametrize("instruction_set", available())
def test_terms_that_some_models_have(kv_format: str, instruction_set: str) -> None:
    """A layer's own window is not rounded; logits are capped; a head has a logit of its own."""
    terms: list[dict[str, Any]] = [
        {"rule": HeadRule(0, 100, 64, exact=True)},
        {"rule": HeadRule(0, 33, 64, exact=True), "soft_cap": 3.0},
        {"soft_cap": 3.0},
        {"sink_logits": True},
    ]
    for term in terms:
        batch = Batch(kv_format, instruction_set=instruction_set, lengths=(5, 70, 400), **term)
        outputs = batch.serve((3, 64, 129))
        assert largest_error(batch, outputs) < BOUND[kv_format], term
        batch.rule = replace(batch.rule, exact=False)
        batch.soft_cap, batch.sink_logits = 0.0, None
        assert largest_error(batch, outputs) > 0.05, "the term must matter"


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("instruction_set", available())
def test_attention_mass_of_every_block(kv_format: str, instruction_set: str) -> None:
    lengths, chunks = (5, 333, 2600), (4, 64, 1000)
    batch = Batch(kv_format, lengths=lengths, instruction_set=instruction_set, measured=True)
    batch.serve(chunks)
    for request, n in enumerate(lengths):
        for index, own in enumerate(OWNERS):
            mass, expected = batch.masses[index][request], batch.expected_mass(request, index)
            assert mass.sum().item() == pytest.approx(n * len(own) * batch.group, rel=1e-4)
            torch.testing.assert_close(mass.double(), expected, rtol=2e-3, atol=2e-3)
    unmeasured = Batch(kv_format, lengths=lengths, instruction_set=instruction_set)
    again = Batch(kv_format, lengths=lengths, instruction_set=instruction_set, measured=True)
    assert all(map(torch.equal, unmeasured.serve(chunks), again.serve(chunks)))
    assert all(map(torch.equal, again.masses, batch.masses))


@pytest.mark.parametrize(("io", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("kv_format", ["bfloat16", "float16", *QUANTISED])
def test_half_precision_rows(kv_format: str, io: torch.dtype, bound: float) -> None:
    batch = Batch(kv_format, io=io, lengths=(5, 600))
    assert largest_error(batch, batch.serve((5, 300))) < bound


@pytest.mark.parametrize("kv_format", QUANTISED)
def test_rows_are_stored_to_the_nearest_step(kv_format: str) -> None:
    batch = Batch(kv_format, lengths=(64,))
    batch.k[0][7] *= 1000
    batch.v[0][9] = 0
    batch.serve((64,))
    turn = batch.turn.float()
    for own, cache, table in zip(OWNERS, batch.caches, batch.tables, strict=True):
        for index, head in enumerate(own):
            share = cache[table[0, 0], index].reshape(-1)
            k, v, k_scale, v_scale = read_block(share, kv_format, 64, 64)
            for rows, read, scale in ((batch.k, k, k_scale), (batch.v, v, v_scale)):
                error = (rows[0][:, head] @ turn - read).abs().amax(1)
                # Half a step, and what bfloat16 takes from the scale at the ends of the range.
                assert (error <= 0.5 * scale + 128 * scale * 2**-8 + 1e-6).all()
    assert (batch.stored_rows(0)[1][9] == 0).all()


@pytest.mark.parametrize("kv_format", FORMATS)
def test_the_reference_of_a_format_is_what_comes_back(kv_format: str) -> None:
    batch = Batch(kv_format, lengths=(200,))
    batch.serve((200,))
    k, v = batch.stored_rows(0)
    turn = batch.turn.float()
    kept = FORMATS[kv_format]
    for rows, read, part in ((batch.k[0], k, kept.key), (batch.v[0], v, kept.value)):
        near = torch.isclose(stored(rows, part.name), read @ turn, atol=1e-5, rtol=1e-5)
        # A number half way between two steps may go either way.
        assert near.float().mean() > 0.98


@pytest.mark.parametrize("kv_format", ["float32", "int8"])
def test_a_request_is_computed_the_same_in_any_batch_and_on_any_number_of_threads(
    kv_format: str,
) -> None:
    threads = torch.get_num_threads()
    together = Batch(kv_format).serve()
    try:
        torch.set_num_threads(1)
        assert all(map(torch.equal, Batch(kv_format).serve(), together))
    finally:
        torch.set_num_threads(threads)
    alone = Batch(kv_format)
    alone.lengths = (1, 1, 1, 1, 1, LENGTHS[-1])  # the others hardly start
    out = alone.serve()
    assert torch.equal(out[-1], together[-1])


@pytest.mark.parametrize("kv_format", ["float32", *QUANTISED])
@pytest.mark.parametrize("instruction_set", available())
def test_a_request_is_computed_the_same_in_any_chunks(kv_format: str, instruction_set: str) -> None:
    whole = Batch(kv_format, instruction_set=instruction_set).serve((2000,) * len(LENGTHS))
    for chunks in (CHUNKS, (7,) * len(LENGTHS)):
        pieces = Batch(kv_format, instruction_set=instruction_set).serve(chunks)
        # Sums of floats are taken in another order; roundings to integers must be the same.
        assert max((a - b).abs().max() for a, b in zip(whole, pieces, strict=True)) < 5e-6


def test_bad_arguments_are_refused() -> None:
    cache = torch.zeros(4, NUM_KV_HEADS, 64, 2 * 64 * 4, dtype=torch.int8)
    common: dict[str, Any] = {
        "num_query_heads": 3,
        "num_kv_heads": 3,
        "scale": 1.0,
        "io_dtype": torch.float32,
    }
    good = ClassCache(cache, (0, 1, 2), "float32")
    with pytest.raises(ValueError, match="multiples of 32"):
        LayerAttention(head_size=40, classes=[good], **common)
    with pytest.raises(ValueError, match="each once"):
        LayerAttention(head_size=64, classes=[ClassCache(cache, (0, 1), "float32")], **common)
    wrong = ClassCache(cache, (0, 1, 2), "float32", sink=20, window=10)
    with pytest.raises(ValueError, match="multiple of the block"):
        LayerAttention(head_size=64, classes=[wrong], **common)
    with pytest.raises(ValueError, match="int32"):
        ClassStep(torch.zeros(2), torch.zeros(1), torch.zeros(1, 1))
    two, table = torch.zeros(2, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32)
    starts = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ValueError, match="windows or prompt lengths for 2 requests"):
        ClassStep(starts, two, table, windows=starts)
    with pytest.raises(ValueError, match="windows or prompt lengths for 2 requests"):
        ClassStep(starts, two, table, prompt_lens=starts)
    with pytest.raises(ValueError, match="lie as block_table"):
        ClassStep(starts, two, table, mass=torch.zeros(2, 5))
