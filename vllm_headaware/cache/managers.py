"""The block managers of head classes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHashList, KVCacheBlock, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.request import Request

from vllm_headaware.cache.at_hand import AtHand
from vllm_headaware.cache.regimes import Regimes
from vllm_headaware.cache.specs import HeadClassSpec, SinkWindowSpec
from vllm_headaware.plan.windows import Window, Windows


class BlockHashes(list):
    """Block hashes of a request, one for each `hash_block_size` tokens.

    What a layer stores depends on what the layers before it saw, so the hashes of blocks that were
    computed under other windows than everything are salted with them (engine_core/prefixes.py).

    Attributes:
        least: windows that a prefix hit must fill.
        reading: windows that it fills if what they show is still there.
    """

    def __init__(self, hashes: Iterable[Any], least: Windows, reading: Windows) -> None:
        super().__init__(hashes)
        self.least, self.reading = least, reading


class ClassManager(SingleTypeKVCacheManager):
    """Gives back what a request's window hides at its position.

    A hole in a request's block list is the pool's null block, as for vLLM's sliding windows, so
    positions in the list stay positions in the sequence.
    """

    kv_cache_spec: Any

    def __init__(self, kv_cache_spec: HeadClassSpec, **kwargs) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.num_window_freed = 0
        """Blocks that left a window since the engine started."""
        self.regimes: dict[str, Regimes] = {}
        """Windows of requests by position; without any, those of the class hold."""
        self._alone: dict[str, set[int]] = {}
        self._keeper: dict[int, str] = {}
        self.shared_since: set[str] = set()
        """Requests whose blocks another has adopted; whoever acts on it clears it."""

    def window_at(self, request_id: str, position: int) -> Window:
        """What the query at a position sees by."""
        own = self.regimes.get(request_id)
        if own is None:
            return self.kv_cache_spec.window
        return own.at(position)[self.kv_cache_group_id]

    def own_blocks(self, request_id: str) -> int:
        """Blocks that a request alone holds; where it gives none back before its end, all it holds.

        A block that leaves a window comes free only if nobody shares it.
        """
        alone = self._alone.get(request_id)
        if alone is not None:
            return len(alone)
        if self.gives_back(request_id):
            return 0
        return len(self.req_to_blocks.get(request_id, ()))

    def at_hand(self, request_id: str) -> AtHand:
        """The same of a running request, at hand while it runs."""
        blocks = self.req_to_blocks[request_id]
        gives_back = self.gives_back(request_id)
        own = self._alone.setdefault(request_id, set()) if gives_back else blocks
        return AtHand(own, blocks, self.block_size)

    def gives_back(self, request_id: str) -> bool:
        """Whether blocks of a request go back while it runs, or may."""
        own = self.regimes.get(request_id)
        least = self.kv_cache_spec.window if own is None else own.least[self.kv_cache_group_id]
        return least is not None

    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[KVCacheBlock]:
        """Take blocks for the tokens that have none."""
        blocks = super().allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)
        if blocks and self.gives_back(request_id):
            self._keep(request_id, blocks)
        return blocks

    def _keep(self, request_id: str, blocks: Sequence[KVCacheBlock]) -> None:
        alone = self._alone.setdefault(request_id, set())
        for block in blocks:
            alone.add(block.block_id)
            self._keeper[block.block_id] = request_id

    def adopted(self, request_id: str, blocks: Sequence[KVCacheBlock]) -> None:
        """A request holds prefix hits, whose reference counts have it in them already."""
        for block in blocks:
            if block.is_null:
                continue
            if block.ref_cnt == 1:
                if self.gives_back(request_id):
                    self._keep(request_id, [block])
                continue
            other = self._keeper.get(block.block_id)
            if other in self._alone and block.block_id in self._alone[other]:
                self._alone[other].discard(block.block_id)
                self.shared_since.add(other)

    def forget(self, request_id: str) -> None:
        """A request holds nothing any more."""
        self._alone.pop(request_id, None)
        self.regimes.pop(request_id, None)

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Give back the blocks between the sinks and the next query's window."""
        blocks = self.req_to_blocks.get(request_id)
        if not blocks:
            return
        window = self.window_at(request_id, processed_computed_tokens)
        if window is None:
            return
        spec = self.kv_cache_spec
        end = min(spec.first_window_block(processed_computed_tokens, window), len(blocks))
        if end <= spec.sink_blocks or blocks[end - 1].is_null:
            return
        alone = self._alone.get(request_id, set())
        for index in range(end - 1, spec.sink_blocks - 1, -1):
            if blocks[index].is_null:
                break
            alone.discard(blocks[index].block_id)
        free_before = self.block_pool.get_num_free_blocks()
        self._remove_blocks_in_range(request_id, spec.sink_blocks, end)
        self.num_window_freed += self.block_pool.get_num_free_blocks() - free_before

    def cache_blocks(self, request: Request, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Keep full blocks for the prefix cache, as far as nobody would see more than they did."""
        own = self.regimes.get(request.request_id)
        if own is not None:
            num_tokens = min(num_tokens, own.cached_until)
        super().cache_blocks(request, num_tokens, *args, **kwargs)


class SinkWindowManager(ClassManager):
    """Keeps the sink blocks and the blocks of the window; everything between goes back at once."""

    kv_cache_spec: SinkWindowSpec

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        """Blocks to take from the pool: new ones, and cached ones that are in its free list."""
        held = len(self.req_to_blocks.get(request_id, ())) + len(new_computed_blocks)
        new = max(-(-num_tokens // self.block_size) - held, 0)
        window = self.window_at(request_id, num_local_computed_tokens)
        if apply_admission_cap and window is not None and window > 0:
            # Chunks in flight are the business of cache/admission.py, which counts them once for
            # all requests.
            new = min(new, self.kv_cache_spec.steady_blocks(window))
        return new + self._get_num_evictable_blocks(new_computed_blocks)

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        """Adopt the blocks of a prefix hit: sinks, holes, and the window before the hit's end."""
        own = self.req_to_blocks[request_id]
        assert not own, "a prefix hit is adopted before any block is allocated"
        self.block_pool.touch([block for block in new_computed_blocks if not block.is_null])
        own.extend(new_computed_blocks)
        self.num_cached_block[request_id] = len(own)

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: BlockHashList,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: KVCacheSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """The longest aligned prefix whose sinks and whose last window are all cached, with as much
        before the window as is left of what its prompt would be read by.

        Requests look up BlockHashes.
        """
        assert isinstance(kv_cache_spec, SinkWindowSpec)
        spec, size = kv_cache_spec, kv_cache_spec.block_size
        window: Window = spec.window
        reading: Window = spec.window
        if isinstance(block_hashes, BlockHashes):
            group = kv_cache_group_ids[0]
            window, reading = block_hashes.least[group], block_hashes.reading[group]
        hashes = resolve_block_hashes(block_hashes, block_pool.hash_block_size, size)
        step = alignment_tokens
        cached: dict[int, list[KVCacheBlock] | None] = {}

        def look_up(index: int) -> list[KVCacheBlock] | None:
            if index not in cached:
                cached[index] = block_pool.get_cached_block(hashes[index], kv_cache_group_ids)
            return cached[index]

        longest = min(max_length, len(hashes) * size)
        if window is None:  # what is missing ends every longer prefix
            missing = (index for index in range(longest // size) if not look_up(index))
            longest = min(longest, next(missing, longest) * size)
        for length in range(longest // step * step, 0, -step):
            needed = visible_blocks(spec, length, window)
            if all(look_up(index) for index in needed):
                hit: tuple[list[KVCacheBlock], ...] = tuple(
                    [block_pool.null_block] * (length // size) for _ in kv_cache_group_ids
                )
                surplus = visible_blocks(spec, length, reading)
                for index in [*needed, *itertools.takewhile(look_up, surplus)]:
                    for blocks, block in zip(hit, look_up(index) or (), strict=True):
                        blocks[index] = block
                return hit, length
        return tuple([] for _ in kv_cache_group_ids), 0


def visible_blocks(spec: SinkWindowSpec, num_tokens: int, window: Window) -> list[int]:
    """Indices of the full blocks of num_tokens tokens that the next query sees: from the newest to
    the oldest of its window, then the sinks'."""
    end = num_tokens // spec.block_size
    sinks = min(spec.sink_blocks, end)
    start = max(spec.first_window_block(num_tokens, window), sinks)
    return [*range(end - 1, start - 1, -1), *range(sinks)]
