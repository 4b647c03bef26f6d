"""The sink + window manager on vLLM's own block pool: what it holds, frees, adopts and finds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash

from vllm_headaware.cache.managers import (
    BlockHashes,
    SinkWindowManager,
    visible_blocks,
)
from vllm_headaware.cache.regimes import Regimes
from vllm_headaware.cache.specs import SinkWindowSpec, UnlimitedSpec
from vllm_headaware.cache.unlimited import UnlimitedManager
from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.policies.base import HeadPolicy

BLOCK = 4
HASHES = [BlockHash(bytes([n]) * 32) for n in range(40)]


def make_manager(
    num_blocks: int = 64, sink: int = 6, window: int = 9, prefill_window: int = 0
) -> SinkWindowManager:
    """A manager of blocks of 4 tokens: 2 sink blocks, windows of 9 tokens."""
    spec = SinkWindowSpec(
        block_size=BLOCK,
        num_kv_heads=1,
        head_size=32,
        dtype=torch.float32,
        head_class="local",
        sink=sink,
        window=window,
        prefill_window=prefill_window,
        max_in_flight_tokens=16,
    )
    pool = BlockPool(
        num_gpu_blocks=num_blocks,
        enable_caching=True,
        hash_block_size=BLOCK,
        enable_kv_cache_events=False,
    )
    return SinkWindowManager(
        spec,
        block_pool=pool,
        enable_caching=True,
        kv_cache_group_id=0,
        scheduler_block_size=BLOCK,
    )


def by_prompt(reading: int | None, window: int | None, num_prompt: int) -> Regimes:
    """Windows of a request of a server with one class."""
    classes = [HeadClass(HeadPolicy("local", 6, 9, "float32"), BLOCK, 1)]
    return Regimes(classes, [(0, (reading,))], num_prompt, (window,), (window,))


def held(manager: SinkWindowManager, request: str) -> list[int]:
    """Positions in the block list that are not holes."""
    blocks = manager.req_to_blocks[request]
    return [index for index, block in enumerate(blocks) if not block.is_null]


def cache(manager: SinkWindowManager, request: str, num_tokens: int) -> None:
    """Enter a request's full blocks into the prefix cache."""
    fake: Any = SimpleNamespace(
        request_id=request, block_hashes=HASHES, shared_prefix_boundary=0, num_tokens=num_tokens
    )
    manager.block_pool.cache_full_blocks(
        request=fake,
        blocks=manager.req_to_blocks[request],
        num_cached_blocks=manager.num_cached_block.get(request, 0),
        num_full_blocks=num_tokens // BLOCK,
        block_size=BLOCK,
        kv_cache_group_id=0,
    )
    manager.num_cached_block[request] = num_tokens // BLOCK


def test_middle_blocks_return_to_the_pool_at_once() -> None:
    manager = make_manager()
    free = manager.block_pool.get_num_free_blocks()
    manager.allocate_new_blocks("a", 40, 40)
    assert held(manager, "a") == list(range(10))
    manager.remove_skipped_blocks("a", 40)
    # The next query is at 40 and sees 32..40 by its window: block 8 on, and the sinks.
    assert held(manager, "a") == [0, 1, 8, 9]
    assert manager.block_pool.get_num_free_blocks() == free - 4
    assert manager.num_window_freed == 6


@pytest.mark.parametrize("processed", range(0, 60))
def test_holes_are_exactly_what_nobody_will_see(processed: int) -> None:
    manager = make_manager()
    manager.allocate_new_blocks("a", 60, 60)
    manager.remove_skipped_blocks("a", processed)
    start = max(processed - 9 + 1, 0) // BLOCK * BLOCK
    seen = {j // BLOCK for j in range(60) if j < 8 or j >= start}
    assert held(manager, "a") == sorted(seen)


def test_a_short_request_loses_nothing() -> None:
    manager = make_manager()
    manager.allocate_new_blocks("a", 11, 11)
    manager.remove_skipped_blocks("a", 11)
    assert held(manager, "a") == [0, 1, 2]


def test_an_unknown_request_is_no_one() -> None:
    manager = make_manager()
    manager.remove_skipped_blocks("nobody", 100)
    assert "nobody" not in manager.req_to_blocks


def find(manager: SinkWindowManager, max_length: int, step: int = BLOCK) -> tuple[list, int]:
    blocks, length = manager.find_longest_cache_hit(
        HASHES, max_length, [0], manager.block_pool, manager.kv_cache_spec, False, step
    )
    return blocks[0], length


def test_a_prefix_hit_needs_sinks_and_the_last_window_only() -> None:
    manager = make_manager()
    manager.allocate_new_blocks("a", 40, 40)
    cache(manager, "a", 40)
    manager.remove_skipped_blocks("a", 40)
    blocks, length = find(manager, 40)
    assert length == 40
    assert [i for i, b in enumerate(blocks) if not b.is_null] == [0, 1, 8, 9]

    manager.add_local_computed_blocks("b", blocks, 40, 0)
    assert held(manager, "b") == [0, 1, 8, 9]
    manager.free("a")
    manager.free("b")
    assert manager.block_pool.get_num_free_blocks() == 63


def test_hits_land_on_the_alignment() -> None:
    manager = make_manager()
    manager.allocate_new_blocks("a", 44, 44)
    cache(manager, "a", 44)
    assert find(manager, 43, step=12)[1] == 36


def test_a_lost_sink_block_is_a_miss() -> None:
    manager = make_manager()
    manager.allocate_new_blocks("a", 40, 40)
    cache(manager, "a", 40)
    manager.block_pool.evict_blocks({manager.req_to_blocks["a"][1].block_id})
    assert find(manager, 40)[1] == 4


def test_a_lost_middle_block_shortens_nothing_beyond_it() -> None:
    manager = make_manager()
    manager.allocate_new_blocks("a", 40, 40)
    cache(manager, "a", 40)
    manager.block_pool.evict_blocks({manager.req_to_blocks["a"][4].block_id})
    assert find(manager, 40)[1] == 40
    assert find(manager, 20)[1] == 16


def test_admission_counts_what_will_be_held() -> None:
    manager = make_manager()
    most = manager.kv_cache_spec.steady_blocks(9)

    def needed(tokens: int, cap: bool) -> int:
        return manager.get_num_blocks_to_allocate("new", tokens, [], 0, 0, tokens, cap)

    assert needed(400, cap=False) == 100
    assert needed(400, cap=True) == most == 2 + 2 + 1
    assert needed(8, cap=True) == 2


def test_cached_free_blocks_count_as_taken() -> None:
    manager = make_manager()
    manager.allocate_new_blocks("a", 40, 40)
    cache(manager, "a", 40)
    manager.free("a")
    blocks, length = find(manager, 40)
    assert manager.get_num_blocks_to_allocate("b", 41, blocks, length, length, 41) == 1 + 4


def test_visible_blocks_of_a_spec() -> None:
    spec = make_manager().kv_cache_spec
    assert sorted(visible_blocks(spec, 40, 9)) == [0, 1, 8, 9]
    assert sorted(visible_blocks(spec, 12, 9)) == [0, 1, 2]
    assert sorted(visible_blocks(spec, 4, 9)) == [0]
    assert visible_blocks(spec, 3, 9) == []


def test_a_request_with_a_window_of_its_own() -> None:
    manager = make_manager()
    manager.regimes |= {"narrow": by_prompt(2, 2, 0), "everything": by_prompt(None, None, 0)}
    for name in ("plan", "narrow", "everything"):
        manager.allocate_new_blocks(name, 40, 40)
        manager.remove_skipped_blocks(name, 40)
    assert held(manager, "plan") == [0, 1, 8, 9]
    assert held(manager, "narrow") == [0, 1, 9]
    assert held(manager, "everything") == list(range(10))


def make_unlimited() -> UnlimitedManager:
    """A manager of a class that keeps everything, with 2 sink blocks."""
    spec = UnlimitedSpec(
        block_size=BLOCK,
        num_kv_heads=1,
        head_size=32,
        dtype=torch.float32,
        head_class="retrieval",
        sink=6,
    )
    return UnlimitedManager(
        spec,
        block_pool=make_manager().block_pool,
        enable_caching=True,
        kv_cache_group_id=0,
        scheduler_block_size=BLOCK,
    )


def test_the_window_of_a_prompt_is_kept_until_it_is_read() -> None:
    manager = make_manager()
    manager.regimes["a"] = by_prompt(21, 9, 49)
    manager.allocate_new_blocks("a", 60, 60)
    manager.remove_skipped_blocks("a", 48, 49)
    # The last token of the prompt sees 28..48; once it is computed, the next query sees 41..49.
    assert held(manager, "a") == [0, 1, *range(7, 15)]
    manager.remove_skipped_blocks("a", 49, 49)
    assert held(manager, "a") == [0, 1, *range(10, 15)]
    assert manager.num_window_freed == 8
    manager.regimes |= {"wide": by_prompt(30, 30, 49), "everything": by_prompt(None, 9, 49)}
    for name in ("wide", "everything"):
        manager.allocate_new_blocks(name, 60, 60)
        manager.remove_skipped_blocks(name, 48, 49)
    assert held(manager, "wide") == [0, 1, *range(4, 15)], "as wide as it asked for"
    assert held(manager, "everything") == list(range(15))


def test_admission_counts_the_window_of_a_prompt() -> None:
    manager = make_manager()
    manager.regimes["new"] = by_prompt(21, 9, 400)
    needed = manager.get_num_blocks_to_allocate("new", 400, [], 0, 0, 400, True)
    assert needed == manager.kv_cache_spec.steady_blocks(21) == 2 + 5 + 1


def test_a_prefix_hit_fills_the_window_of_a_prompt_as_far_as_it_is_left() -> None:
    manager = make_manager()
    manager.regimes["a"] = by_prompt(21, 9, 40)
    manager.allocate_new_blocks("a", 40, 40)
    cache(manager, "a", 40)
    manager.remove_skipped_blocks("a", 40, 40)

    def hit(least: int, reading: int | None) -> tuple[list[int], int]:
        hashes = BlockHashes(HASHES, (least,), (reading,))
        blocks, length = manager.find_longest_cache_hit(
            hashes, 40, [0], manager.block_pool, manager.kv_cache_spec, False, BLOCK
        )
        return [i for i, b in enumerate(blocks[0]) if not b.is_null], length

    assert hit(9, 21) == ([0, 1, 5, 6, 7, 8, 9], 40), "freed blocks stay until they are taken"
    assert hit(9, None) == (list(range(10)), 40)
    assert hit(9, 9) == ([0, 1, 8, 9], 40)
    hashes = BlockHashes(HASHES, (9,), (None,))
    blocks, _ = manager.find_longest_cache_hit(
        hashes, 40, [0], manager.block_pool, manager.kv_cache_spec, False, BLOCK
    )
    manager.block_pool.evict_blocks({blocks[0][5].block_id})
    assert hit(9, 21) == ([0, 1, 6, 7, 8, 9], 40), "still a hit, with less before its window"
    assert hit(9, -8) == ([0, 1, 6, 7, 8, 9], 40)
    assert hit(21, 21) == (list(range(5)), 20), "where its own window begins with the sinks"


@pytest.mark.parametrize("make", ["sink-window", "unlimited"])
def test_what_was_generated_under_other_windows_is_not_cached(make: str) -> None:
    manager: Any = make_manager()
    if make == "unlimited":
        manager = make_unlimited()
    # Beyond the prompt the ninth token back is in the sinks up to token 20.
    manager.regimes["a"] = by_prompt(21, 9, 22)
    assert manager.regimes["a"].cached_until == 22
    manager.allocate_new_blocks("a", 40, 40)
    request: Any = SimpleNamespace(
        request_id="a",
        block_hashes=HASHES,
        shared_prefix_boundary=0,
        num_tokens=40,
        num_prompt_tokens=22,
    )
    manager.cache_blocks(request, 12, replay_boundaries=())
    manager.cache_blocks(request, 40, replay_boundaries=())
    cached = [block.block_hash is not None for block in manager.req_to_blocks["a"]]
    assert cached == [True] * 5 + [False] * 5, "five blocks of the prompt are full"


def test_evicted_blocks_are_free_and_nothing_later_is_cached() -> None:
    manager: Any = make_unlimited()
    manager.allocate_new_blocks("a", 40, 40)
    cache(manager, "a", 20)
    free = manager.block_pool.get_num_free_blocks()
    manager.evict("a", [3, 7])
    assert held(manager, "a") == [0, 1, 2, 4, 5, 6, 8, 9]
    assert manager.block_pool.get_num_free_blocks() == free + 2
    request: Any = SimpleNamespace(request_id="a", shared_prefix_boundary=0)
    manager.cache_blocks(request, 40, replay_boundaries=())
    cached = [block.block_hash is not None for block in manager.req_to_blocks["a"]]
    assert cached == [True, True, True, False, True, *[False] * 5], "only what came before"
    manager.free("a")
    assert manager.block_pool.get_num_free_blocks() == 63


def test_an_unlimited_class_gives_back_what_a_request_caps() -> None:
    manager: Any = make_unlimited()
    manager.regimes["capped"] = by_prompt(9, 9, 0)
    for name in ("plan", "capped"):
        manager.allocate_new_blocks(name, 40, 40)
        manager.remove_skipped_blocks(name, 40)
    assert held(manager, "plan") == list(range(10))
    assert held(manager, "capped") == [0, 1, 8, 9]
    assert manager.num_window_freed == 6


@pytest.mark.parametrize(("window", "lost", "length"), [(None, 4, 16), (2, 4, 40), (2, 9, 36)])
def test_a_prefix_hit_needs_the_blocks_of_the_requests_own_window(
    window: int | None, lost: int, length: int
) -> None:
    manager = make_manager()
    manager.regimes["a"] = by_prompt(None, None, 0)
    manager.allocate_new_blocks("a", 40, 40)
    cache(manager, "a", 40)
    manager.block_pool.evict_blocks({manager.req_to_blocks["a"][lost].block_id})
    hashes = BlockHashes(HASHES, (window,), (window,))
    blocks, found = manager.find_longest_cache_hit(
        hashes, 40, [0], manager.block_pool, manager.kv_cache_spec, False, BLOCK
    )
    assert found == length
    seen = visible_blocks(manager.kv_cache_spec, length, window)
    assert [i for i, b in enumerate(blocks[0]) if not b.is_null] == sorted(seen)


def test_blocks_held_alone_and_adopted_by_another() -> None:
    """a keeps sinks and window of 40 tokens; b adopts them while a still holds them."""
    manager = make_manager()
    manager.allocate_new_blocks("a", 40, 40)
    assert manager.own_blocks("a") == 10
    cache(manager, "a", 40)
    manager.remove_skipped_blocks("a", 40)
    assert manager.own_blocks("a") == len(held(manager, "a")) == 4
    (hit,), length = manager.find_longest_cache_hit(
        HASHES[:10], 40, [0], manager.block_pool, manager.kv_cache_spec, False, BLOCK
    )
    assert length == 40
    manager.add_local_computed_blocks("b", hit, length, 0)
    manager.adopted("b", hit)
    assert (manager.own_blocks("a"), manager.own_blocks("b")) == (0, 0)
    assert manager.shared_since == {"a"}
    manager.allocate_new_blocks("b", 48, 48)
    assert manager.own_blocks("b") == 2
    manager.remove_skipped_blocks("b", 48)
    assert manager.own_blocks("b") == 2, "what it shared left its window, and nothing came free"
    manager.free("a")
    manager.forget("a")
    manager.free("b")
    manager.forget("b")
    assert (manager.own_blocks("a"), manager.own_blocks("b")) == (0, 0)
    assert manager.block_pool.get_num_free_blocks() == 63


@pytest.mark.parametrize("window", [9, 10], ids=["a block comes", "a block goes"])
def test_quiet_until_a_block_comes_or_goes(window: int) -> None:
    manager = make_manager(window=window)
    manager.allocate_new_blocks("a", 41, 41)
    manager.remove_skipped_blocks("a", 40)
    before = held(manager, "a")
    until = manager.at_hand("a").quiet_until(40, window)
    for tokens in range(42, until + 1):
        manager.remove_skipped_blocks("a", tokens - 1)
        assert not manager.allocate_new_blocks("a", tokens, tokens)
        assert held(manager, "a") == before, tokens
    manager.remove_skipped_blocks("a", until)
    manager.allocate_new_blocks("a", until + 1, until + 1)
    assert held(manager, "a") != before


def compactable(*names: str) -> UnlimitedManager:
    """Requests of 40 tokens of the same prompt, whose first 9 blocks are in the prefix cache."""
    manager: Any = make_unlimited()
    for name in names:
        if found := manager.req_to_blocks.get(names[0]):
            manager.block_pool.touch(found)
            manager.req_to_blocks[name] = list(found)
        else:
            manager.allocate_new_blocks(name, 39, 39)
            cache(manager, name, 39)
    return manager


def test_compacted_blocks_are_the_requests_own() -> None:
    """Sinks stay; blocks that are shared or may be found again are replaced, the others are not."""
    manager = compactable("a", "b")
    pool, theirs = manager.block_pool, [b.block_id for b in manager.req_to_blocks["b"]]
    free = pool.get_num_free_blocks()
    moved = manager.compact("a", 6)
    assert moved is not None
    before, after = moved
    assert before == theirs
    assert after[:2] == before[:2]
    assert after[2:6] == [0] * 4
    assert not {*after[6:]} & {*before}, "b holds them"
    assert [b.block_id for b in manager.req_to_blocks["b"]] == theirs
    assert free - pool.get_num_free_blocks() == 4, "what b holds is not free"
    assert manager.own_blocks("a") == 4
    assert manager.gives_back("a")
    assert not manager.gives_back("b")
    again = manager.compact("b", 6)
    assert again is not None
    assert again[1][9] == theirs[9], "not full, so nobody finds it: written to where it is"
    assert not {*again[1][6:9]} & {*before, *after}
    hits = [pool.get_cached_block(HASHES[place], [0]) for place in range(10)]
    assert [bool(hit) for hit in hits] == [True] * 9 + [False], "originals are found again"
    manager.free("a")
    manager.free("b")
    manager.forget("a")
    assert pool.get_num_free_blocks() == free + 10
    assert not manager.gives_back("a")


@pytest.mark.parametrize("spare", [0, 1])
def test_compacted_where_few_blocks_are_free(spare: int) -> None:
    """What only the request holds leaves the prefix cache, the first places first."""
    manager = compactable("a")
    pool = manager.block_pool
    pool.get_new_blocks(pool.get_num_free_blocks() - spare)
    moved = manager.compact("a", 6)
    assert moved is not None
    before, after = moved
    assert [x == y for x, y in zip(before[6:], after[6:], strict=True)] == [
        *(True, True),
        *((False, True) if spare else (True, True)),
    ]
    assert pool.get_cached_block(HASHES[6], [0]) is None, "not what it was"
    assert pool.get_num_free_blocks() == spare + 4


def test_not_compacted_where_others_hold_it_and_none_is_free() -> None:
    manager = compactable("a", "b")
    pool, theirs = manager.block_pool, [b.block_id for b in manager.req_to_blocks["b"]]
    pool.get_new_blocks(pool.get_num_free_blocks() - 3)
    assert manager.compact("a", 6) is None
    assert [b.block_id for b in manager.req_to_blocks["a"]] == theirs
    assert pool.get_num_free_blocks() == 3
