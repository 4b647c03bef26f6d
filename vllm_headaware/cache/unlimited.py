"""The block manager of classes whose heads keep everything, or what is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

from vllm_headaware.cache.managers import ClassManager
from vllm_headaware.cache.specs import HeadClassSpec

NEVER_CACHED = 2**40
"""More blocks than a request can have: as many as are said to be in the prefix cache already."""


class UnlimitedManager(ClassManager, FullAttentionManager):
    """Keeps everything but what a request's own window hides, or evict() or compact() take."""

    def __init__(self, kv_cache_spec: HeadClassSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self._compacted: set[str] = set()

    def gives_back(self, request_id: str) -> bool:
        """Whether blocks of a request go back while it runs: by its own window, or by score; one
        that is compacted has given back what it may."""
        by_score = self.kv_cache_spec.heavy_hitters or request_id in self._compacted
        return by_score or super().gives_back(request_id)

    def forget(self, request_id: str) -> None:
        """A request holds nothing any more."""
        super().forget(request_id)
        self._compacted.discard(request_id)

    def compact(self, request_id: str, first: int) -> tuple[list[int], list[int]] | None:
        """Give back the blocks between the sinks and position `first`; those from there on become
        the request's own, to be written to: blocks that are shared, or in the prefix cache, are
        given back for new ones. Where too few are free, what nobody else holds leaves the prefix
        cache instead.

        Returns:
            Ids of its blocks before and after, by position; None: too few are free.
        """
        blocks, pool = self.req_to_blocks[request_id], self.block_pool
        before = [block.block_id for block in blocks]
        places = range(first, len(blocks))
        shared = [place for place in places if blocks[place].ref_cnt > 1]
        found = [
            place
            for place in places
            if blocks[place].ref_cnt == 1 and blocks[place].block_hash is not None
        ]
        lack = max(len(shared) + len(found) - pool.get_num_free_blocks(), 0)
        if lack > len(found):
            return None
        pool.evict_blocks({blocks[place].block_id for place in found[:lack]})
        replaced = [*shared, *found[lack:]]
        new = pool.get_new_blocks(len(replaced))
        pool.free_blocks([blocks[place] for place in reversed(replaced)])
        for place, block in zip(replaced, new, strict=True):
            blocks[place] = block
        self.evict(request_id, range(first - 1, self.kv_cache_spec.sink_blocks - 1, -1))
        self._compacted.add(request_id)
        self._keep(request_id, [b for b in blocks if b.ref_cnt == 1 and not b.is_null])
        return before, [block.block_id for block in blocks]

    def evict(self, request_id: str, positions: Sequence[int]) -> None:
        """Give back blocks of a request by their position; its later blocks depend on what it lost,
        so none of them enters the prefix cache."""
        blocks = self.req_to_blocks[request_id]
        self.block_pool.free_blocks([blocks[position] for position in positions])
        alone = self._alone.get(request_id, set())
        for position in positions:
            alone.discard(blocks[position].block_id)
            blocks[position] = self._null_block
        self.num_cached_block[request_id] = NEVER_CACHED
