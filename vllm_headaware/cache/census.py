"""The census: what is held right now, by head class, in blocks. Bytes are the plan's business."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Census:
    """A moment of the block pool.

    Attributes:
        held: blocks with an owner, by head class; a block shared by requests counts once.
        pending: blocks given up by a request whose last step is still in flight.
        free: blocks anybody may take, cached prefixes included.
        total: blocks of the pool (the null block is not one of them).
        tokens: tokens of the requests that hold blocks.
        freed: blocks given back since the start, by reason.
    """

    held: dict[str, int]
    pending: int
    free: int
    total: int
    tokens: int
    freed: dict[str, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return self.total - self.free


def take_census(scheduler: Any, class_names: list[str], freed: dict[str, int]) -> Census:
    """Count the blocks of a vLLM scheduler whose KV-cache groups are the classes, in order."""
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    held = {}
    for name, group in zip(class_names, manager.coordinator.single_type_managers, strict=True):
        held[name] = len(
            {
                block.block_id
                for blocks in group.req_to_blocks.values()
                for block in blocks
                if not block.is_null
            }
        )
    free, total = pool.get_num_free_blocks(), pool.num_gpu_blocks - 1
    return Census(
        held=held,
        pending=total - free - sum(held.values()),
        free=free,
        total=total,
        tokens=sum(request.num_computed_tokens for request in scheduler.running),
        freed=freed,
    )
