"""The visibility rule and attention under it, in plain torch: slow and obvious, the oracle.

A KV head keeps the first tokens of a request (attention sinks, arXiv 2309.17453) and its latest
ones, both rounded outward to whole cache blocks. What a query sees depends on positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_headaware.kernels.formats import FORMATS


@dataclass(frozen=True)
class HeadRule:
    """What the queries of one KV head see.

    Attributes:
        sink: tokens at the start of the request that stay visible, >= 0.
        window: latest tokens that are visible, the query's own included; None for all. 0 or less:
            all from token -window on, which is a multiple of block.
        prefill_window: what a window is at least for queries of the prompt, >= 0; None: they see
            all.
        changes: (position, window) in order: what the window is from a position on, instead of
            both.
        block: tokens per cache block that both are rounded outward to, >= 1.
        exact: the window is the model's own: not rounded to blocks.
        kept: (position, tokens) in order: from a position on, of the tokens before it only these
            are visible, besides the sinks.
        kv_format: how keys and values are stored, a name of formats.FORMATS; float32 takes them as
            they come.

    Raises:
        ValueError: a number out of its range.
    """

    sink: int = 0
    window: int | None = None
    block: int = 1
    kv_format: str = "float32"
    prefill_window: int | None = 0
    changes: tuple[tuple[int, int | None], ...] = ()
    exact: bool = False
    kept: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if self.sink < 0:
            raise ValueError(f"sink must be 0 or more tokens, got {self.sink}")
        if self.block < 1:
            raise ValueError(f"block must be 1 or more tokens, got {self.block}")
        if self.window is not None and self.window < 1 and self.window % self.block:
            raise ValueError(
                f"window must be 1 or more tokens, a block's first token as a negative number, or"
                f" None, got {self.window}"
            )


UNLIMITED = HeadRule()


def visible(
    query_pos: torch.Tensor, key_pos: torch.Tensor, rule: HeadRule, num_prompt: int = 0
) -> torch.Tensor:
    """Which keys each query sees.

    Args:
        query_pos: integers [num_queries], positions in the request from 0.
        key_pos: integers [num_keys], likewise.
        num_prompt: tokens of the request's prompt; queries from there on were generated.

    Returns:
        bool [num_queries, num_keys].
    """
    i, j = query_pos[:, None], key_pos[None, :]
    seen, sinks = j <= i, -(-rule.sink // rule.block) * rule.block
    for position, tokens in rule.kept:
        stays = (j >= position) | (j < sinks) | torch.isin(j, torch.tensor(tokens))
        seen = seen & ((i < position) | stays)
    if rule.window is None and not rule.changes:
        return seen
    start, rounding = torch.zeros_like(i), 1 if rule.exact else rule.block
    for position, window in rule.changes or _by_prompt(rule, num_prompt):
        oldest = torch.full_like(i, -(window or 0))
        if window is not None and window > 0:
            oldest = (i - window + 1).clamp(min=0)
        start = torch.where(i >= position, oldest - oldest % rounding, start)
    return seen & ((j < sinks) | (j >= start))


def _by_prompt(rule: HeadRule, num_prompt: int) -> tuple[tuple[int, int | None], ...]:
    window, wide = rule.window, rule.prefill_window
    reading = None if window is None or wide is None else max(window, wide)
    return (0, window if wide == 0 else reading), (num_prompt, window)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rules: Sequence[HeadRule],
    scale: float,
    query_pos: torch.Tensor | None = None,
    num_prompt: int = 0,
    soft_cap: float = 0.0,
    sink_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one request, every KV head under its own rule; products and softmax in float64.

    Args:
        q: [num_queries, num_query_heads, head_size]; query heads share KV heads in equal,
            consecutive groups.
        k: [num_keys, num_kv_heads, head_size], keys of positions 0 .. num_keys - 1.
        v: [num_keys, num_kv_heads, value_size].
        rules: [num_kv_heads].
        scale: factor on the logits.
        query_pos: integers [num_queries]; the request's last positions when left out.
        num_prompt: see visible().
        soft_cap: logits become cap x tanh(logits / cap), as in Gemma 2 (arXiv 2408.00118); 0: none.
        sink_logits: [num_query_heads], a logit of each head that no value belongs to, as in gpt-oss
            (arXiv 2508.10925); None: none.

    Returns:
        [num_queries, num_query_heads, value_size], dtype of q.

    Raises:
        ValueError: shapes that do not fit together.
    """
    num_queries, num_query_heads, _ = q.shape
    num_keys, num_kv_heads, _ = k.shape
    if len(rules) != num_kv_heads or v.shape[:2] != k.shape[:2]:
        raise ValueError(
            f"k {tuple(k.shape)}, v {tuple(v.shape)} and {len(rules)} rules do not have the same "
            "KV heads and tokens"
        )
    if num_query_heads % num_kv_heads:
        raise ValueError(f"{num_query_heads} query heads cannot share {num_kv_heads} KV heads")
    if query_pos is None:
        query_pos = torch.arange(num_keys - num_queries, num_keys)
    key_pos = torch.arange(num_keys)

    group = num_query_heads // num_kv_heads
    out = torch.empty(num_queries, num_query_heads, v.shape[2], dtype=q.dtype)
    for head, rule in enumerate(rules):
        mine = slice(head * group, (head + 1) * group)
        queries, keys, values = q[:, mine], k[:, head], v[:, head]
        if rule.kv_format != "float32":
            kv_format = FORMATS[rule.kv_format]
            queries = asked(queries.float(), rule.kv_format)
            keys = stored(keys.float(), kv_format.key.name)
            values = stored(values.float(), kv_format.value.name)
        logits = torch.einsum("qhd,kd->hqk", queries.double(), keys.double()) * scale
        if soft_cap:
            logits = soft_cap * (logits / soft_cap).tanh()
        logits.masked_fill_(~visible(query_pos, key_pos, rule, num_prompt), float("-inf"))
        if sink_logits is not None:
            extra = sink_logits[mine].double()[:, None, None].expand(-1, num_queries, 1)
            weights = torch.cat([logits, extra], -1).softmax(-1)[..., :-1]
        else:
            weights = logits.softmax(-1)
        out[:, mine] = torch.einsum("hqk,kd->qhd", weights, values.double()).to(q.dtype)
    return out


def stored(x: torch.Tensor, row_format: str) -> torch.Tensor:
    """What comes back of K or V rows after they were stored in a row format.

    A Hadamard rotation of the row, then int8: one scale per row, symmetric; int4: a scale and a
    lowest value per row, asymmetric. Scales and lowest values are bfloat16.

    Args:
        x: float32 [..., head_size].
        row_format: a name of formats.ROW_FORMATS.

    Returns:
        float32, shape of x.
    """
    if row_format == "float16":
        return x.clamp(-65504, 65504).half().float()
    if row_format == "bfloat16":
        return x.bfloat16().float()
    if row_format == "float32":
        return x
    rotation = hadamard(x.shape[-1])
    y = x @ rotation
    if row_format == "int8":
        scale = (y.abs().amax(-1, keepdim=True) / 127).bfloat16().float()
        return (y / scale.clamp(min=1e-30)).round().clamp(-127, 127) * scale @ rotation
    if row_format == "int4":
        low = y.amin(-1, keepdim=True).bfloat16().float()
        scale = ((y.amax(-1, keepdim=True) - low) / 15).bfloat16().float()
        q = ((y - low) / scale.clamp(min=1e-30)).round().clamp(0, 15)
        return (low + q * scale) @ rotation
    raise ValueError(f"unknown format {row_format!r} of K or V")


def asked(q: torch.Tensor, kv_format: str) -> torch.Tensor:
    """What is left of query rows that are to meet keys of a KV format.

    Quantised: a Hadamard rotation of the row, rounded to 8 bits with one scale per row.

    Args:
        q: float32 [..., head_size].

    Returns:
        float32, shape of q.
    """
    if not FORMATS[kv_format].quantised:
        return q
    rotation = hadamard(q.shape[-1])
    y = q @ rotation
    step = y.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (y / step).round() * step @ rotation


def hadamard(size: int) -> torch.Tensor:
    """Orthonormal and symmetric; block diagonal where size is not a power of two."""
    run = size & -size
    block = torch.ones(1, 1)
    while block.shape[0] < run:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)], 0)
    return torch.block_diag(*[block / run**0.5] * (size // run))
