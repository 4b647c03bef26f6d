"""The rule and its attention against the definition, spelled out token by token."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from vllm_headaware.kernels.reference import UNLIMITED, HeadRule, attention, visible

RULES = [
    HeadRule(0, 1, 1),
    HeadRule(3, 7, 1),
    HeadRule(4, 16, 16),
    HeadRule(5, 33, 8),
    HeadRule(40, 9, 16),
    HeadRule(0, 97, 32),
    HeadRule(1, 1000, 32),
    HeadRule(64, None, 32),
    HeadRule(3, 7, 4, prefill_window=40),
    HeadRule(3, 7, 4, prefill_window=None),
    HeadRule(3, -16, 4),
    HeadRule(3, 7, 4, changes=((0, None), (20, -12), (41, 30), (70, 9))),
]


def spelled_out(i: int, j: int, rule: HeadRule, num_prompt: int = 0) -> bool:
    """Is token j visible to query i, by walking over blocks."""
    if j > i:
        return False
    if rule.changes:
        _, window = [change for change in rule.changes if change[0] <= i][-1]
        return spelled_out(i, j, replace(rule, window=window, changes=()))
    if i < num_prompt and rule.window is not None and rule.prefill_window != 0:
        wide = rule.prefill_window
        window = None if wide is None else max(rule.window, wide)
        return spelled_out(i, j, replace(rule, window=window, prefill_window=0))
    if rule.window is not None and rule.window <= 0:
        return j >= -rule.window or j // rule.block in {s // rule.block for s in range(rule.sink)}
    if rule.window is None or i - rule.window + 1 <= 0:
        return True
    block_of = j // rule.block
    sink_blocks = {s // rule.block for s in range(rule.sink)}
    window_blocks = {w // rule.block for w in range(i - rule.window + 1, i + 1)}
    return block_of in sink_blocks or block_of in window_blocks


@pytest.mark.parametrize("num_prompt", [0, 61, 500])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_visible_is_the_definition(rule: HeadRule, num_prompt: int) -> None:
    n = 97 if rule.block < 32 else 203
    seen = visible(torch.arange(n), torch.arange(n), rule, num_prompt)
    assert seen.dtype == torch.bool
    wanted = [[spelled_out(i, j, rule, num_prompt) for j in range(n)] for i in range(n)]
    assert seen.tolist() == wanted


@pytest.mark.parametrize("rule", RULES[:9], ids=str)
def test_never_less_than_asked_and_at_most_a_block_more(rule: HeadRule) -> None:
    """What a user asked for is always visible; rounding adds less than a block on either side."""
    n = 300
    seen = visible(torch.arange(n), torch.arange(n), rule)
    for i in range(n):
        row = seen[i].nonzero().flatten().tolist()
        window = n if rule.window is None else rule.window
        assert set(range(max(0, i - window + 1), i + 1)) <= set(row)
        assert set(range(min(rule.sink, i + 1))) <= set(row)
        assert len(row) <= min(i + 1, rule.sink + window + 2 * (rule.block - 1))


def test_positions_decide_not_their_order() -> None:
    """A shuffled or partial list of positions gets the same answers (chunks, strided tensors)."""
    rule = HeadRule(5, 20, 8)
    whole = visible(torch.arange(150), torch.arange(150), rule)
    queries = torch.randperm(150, generator=torch.Generator().manual_seed(1))[:17]
    keys = torch.arange(300)[: 2 * 97 : 2]
    keys = keys[keys < 150]
    assert torch.equal(visible(queries, keys, rule), whole[queries][:, keys])


@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(4, 4, 8), (9, 3, 16), (8, 2, 5)])
def test_attention_is_the_sum_over_visible_tokens(
    heads: int, kv_heads: int, head_size: int
) -> None:
    rng = random.Random(7)
    torch.manual_seed(7)
    rules = [rng.choice([*RULES[:5], RULES[-1]]) for _ in range(kv_heads)]
    rules[0] = RULES[-1]
    n, first, num_prompt, scale = 61, 13, 50, 0.37
    q = torch.randn(n - first, heads, head_size, dtype=torch.float64)
    k = torch.randn(n, kv_heads, head_size, dtype=torch.float64)
    v = torch.randn(n, kv_heads, head_size + 1, dtype=torch.float64)
    out = attention(q, k, v, rules, scale, num_prompt=num_prompt)
    assert out.shape == (n - first, heads, head_size + 1)
    for i in range(first, n):
        for h in range(heads):
            kv = h // (heads // kv_heads)
            tokens = [j for j in range(n) if spelled_out(i, j, rules[kv], num_prompt)]
            weights = [math.exp(scale * float(q[i - first, h] @ k[j, kv])) for j in tokens]
            wanted = sum(w * v[j, kv] for w, j in zip(weights, tokens, strict=True)) / sum(weights)
            torch.testing.assert_close(out[i - first, h], wanted)


def test_hidden_tokens_do_not_leak() -> None:
    """Huge values under hidden keys change nothing; a float32 result stays float32."""
    torch.manual_seed(3)
    rule = HeadRule(4, 8, 4)
    q, k, v = torch.randn(3, 50, 2, 8).unbind()
    seen = visible(torch.tensor([49]), torch.arange(50), rule)[0]
    before = attention(q[49:], k, v, [rule, rule], 0.3)
    k[~seen], v[~seen] = 1e30, 1e30
    after = attention(q[49:], k, v, [rule, rule], 0.3)
    assert after.dtype == torch.float32
    assert torch.equal(before, after)


def test_unlimited_is_causal_attention() -> None:
    torch.manual_seed(5)
    q, k, v = torch.randn(3, 33, 4, 16, dtype=torch.float64).unbind()
    out = attention(q, k, v, [UNLIMITED] * 4, 0.25)
    stock = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), is_causal=True, scale=0.25
    )
    torch.testing.assert_close(out, stock.transpose(0, 1))


@pytest.mark.parametrize("bad", [{"sink": -1}, {"window": -3, "block": 2}, {"block": 0}], ids=str)
def test_rules_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        HeadRule(**bad)


def test_shapes_that_do_not_fit_are_refused() -> None:
    q, k = torch.zeros(5, 4, 8), torch.zeros(5, 3, 8)
    with pytest.raises(ValueError, match="cannot share"):
        attention(q, k, k, [UNLIMITED] * 3, 1.0)
    with pytest.raises(ValueError, match="2 rules"):
        attention(q, k, k, [UNLIMITED] * 2, 1.0)
