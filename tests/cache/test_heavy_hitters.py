"""Eviction by score: the lightest goes, sinks and the latest stay, what is gone stays gone."""

from typing import Any

import numpy as np
import torch

from vllm_headaware.attention.heavy_hitters import compact
from vllm_headaware.cache.heavy_hitters import HeavyHitters


def test_the_lightest_go_but_sinks_and_the_latest() -> None:
    heavy = HeavyHitters(budget_blocks=4, sink_blocks=1)
    heavy.add("a", [0.0, 5.0, 1.0, 2.0, 0.1, 0.0])
    assert heavy.evict("a", 4) == []
    assert heavy.evict("a", 6) == [2, 3], "0 is the sink, 4 and 5 are the latest half"
    assert heavy.evicted("a") == {2, 3}
    assert heavy.evict("a", 6) == []


def test_scores_add_up_and_what_is_gone_stays_gone() -> None:
    heavy = HeavyHitters(budget_blocks=3, sink_blocks=0)
    heavy.add("a", [1.0, 2.0, 3.0])
    heavy.add("a", [1.5, 0.9, 0.0, 9.0])
    assert heavy.evict("a", 4) == [0], "2.5, 2.9 and 3.0"
    heavy.add("a", [0.0, 0.0, 0.0, 0.0, 0.0])
    assert heavy.evict("a", 5) == [1], "the lightest of those that are left"
    assert heavy.evicted("a") == {0, 1}
    assert heavy.evicted("b") == frozenset()
    heavy.forget("a")
    assert heavy.evicted("a") == frozenset()


def test_a_compact_step_has_what_is_left_in_order() -> None:
    table = torch.arange(20, dtype=torch.int32).reshape(2, 10)
    lens = torch.tensor([70, 33], dtype=torch.int32)
    step = compact(lens, table, [frozenset({1, 3}), frozenset()], 8)
    assert step.seq_lens.tolist() == [70 - 16, 33]
    assert step.block_table[0, :7].tolist() == [0, 2, 4, 5, 6, 7, 8]
    assert step.block_table[1, :5].tolist() == [10, 11, 12, 13, 14]
    assert table[0].tolist() == list(range(10)), "the engine's own table is not touched"
    step.mass[0, :7] = torch.arange(1, 8)
    first: Any = step.mass_by_place()[0]
    assert np.allclose(first, [1, 0, 2, 0, 3, 4, 5, 6, 7])
