"""The census: what is held right now, by head class, in blocks, and what happened since the last.

Bytes are the business of the plan. Counts of events are deltas, because with several front ends
each census reaches only one of them, and their counters are added up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm_headaware.plan import Plan
from vllm_headaware.plan.windows import Windows

MAX_REQUESTS = 64
"""Requests a census lists by name; the largest come first."""


@dataclass(frozen=True)
class Holding:
    """What one request holds.

    Attributes:
        request_id: as in vLLM's log; empty where nobody may see it.
        tokens: its tokens that are computed or being computed.
        blocks: blocks by head class, shared ones included.
        kept: tokens that a KV head of the class keeps of it.
        level: of its budget; 0 is what was planned or asked for.
        windows: [from this position on, what it keeps in each class] in order: null is everything,
            a positive number so many last tokens, 0 and less everything from token -number on.
        since: tokens of its answer that there were when it started. If it was put back, they were
            read again under these windows.
    """

    request_id: str
    tokens: int
    blocks: dict[str, int]
    kept: dict[str, int]
    level: int = 0
    windows: list[tuple[int, dict[str, int | None]]] = field(default_factory=list)
    since: int = 0


@dataclass
class Events:
    """What happened since the last census.

    Attributes:
        freed: blocks given back, by reason.
        prefix_hits: blocks taken over from the prefix cache, by head class.
        finished: what each finished request held at its end.
        level_changes: steps of the budget monitor, by direction: tighten, relax.
        started: requests that started, by the level of their budget, a number as text.
        growth: tokens of answers that ended: as expected when they started, and real.
        squeezed: blocks taken from running requests, by what they were: surplus beyond the windows
            they started with, more of them, down to the floor, or tokens of a prompt that heads
            did not choose.
        avoided: preemptions that squeezes made needless.
    """

    freed: dict[str, int] = field(default_factory=dict)
    prefix_hits: dict[str, int] = field(default_factory=dict)
    finished: list[Holding] = field(default_factory=list)
    level_changes: dict[str, int] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    growth: dict[str, int] = field(default_factory=dict)
    squeezed: dict[str, int] = field(default_factory=dict)
    avoided: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Census:
    """A moment of the block pool.

    Attributes:
        at: Unix time in seconds.
        held: blocks with an owner, by head class; a block shared by requests counts once.
        pending: blocks given up by a request whose last step is still in flight.
        free: blocks anybody may take, cached prefixes included.
        total: blocks of the pool (the null block is not one of them).
        tokens: tokens whose K and V are held, by head class; a shared token counts once.
        dense_tokens: tokens that would be held if every head kept everything.
        planned: blocks the plan gives the running requests, each on its own.
        running: requests that hold blocks.
        requests: the largest of them.
        events: what happened since the last census.
        unpromised: blocks that running requests will not need before they end.
        level: of the budget that new requests get; 0 is the plan.
        surplus: blocks that requests hold beyond their windows, as long as there is room.
    """

    at: float
    held: dict[str, int]
    pending: int
    free: int
    total: int
    tokens: dict[str, int]
    dense_tokens: int = 0
    planned: int = 0
    running: int = 0
    requests: list[Holding] = field(default_factory=list)
    events: Events = field(default_factory=Events)
    unpromised: int = 0
    level: int = 0
    surplus: int = 0

    @property
    def used(self) -> int:
        """Blocks that are not free."""
        return self.total - self.free

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Census:
        """The inverse of dataclasses.asdict."""
        events = values["events"]
        return cls(
            **{
                **values,
                "requests": [Holding(**holding) for holding in values["requests"]],
                "events": Events(
                    **{**events, "finished": [Holding(**h) for h in events["finished"]]}
                ),
            }
        )


def dense_bytes(plan: Plan, census: Census) -> int:
    """Bytes of the same tokens if every head kept all that the model lets it see."""
    sliding = [census.tokens[c.name] for c in plan.classes if c.policy.exact]
    return plan.dense_bytes(census.dense_tokens, sum(sliding))


def empty_census(plan: Plan) -> Census:
    """The census of an engine that has not done anything and whose pool is not known yet."""
    nothing = {c.name: 0 for c in plan.classes}
    return Census(time.time(), nothing, 0, 0, 0, dict(nothing))


def take_census(
    scheduler: Any, plan: Plan, events: Events | None = None, budgets: Any = None
) -> Census:
    """Count the blocks of a vLLM scheduler whose KV-cache groups are the plan's classes.

    Args:
        budgets: the scheduler's (engine_core/admission.py); None: every request has the plan's.
    """
    pool = scheduler.kv_cache_manager.block_pool
    running = {request.request_id: request for request in scheduler.running}
    held, tokens, holes = {}, {}, {}
    for head_class, manager in zip(plan.classes, _managers(scheduler), strict=True):
        filled: dict[int, int] = {}
        for request_id, blocks in manager.req_to_blocks.items():
            request = running.get(request_id)
            length = request.num_computed_tokens if request else 0
            for block, count in _filled_blocks(blocks, length, head_class.block_tokens):
                filled[block.block_id] = max(count, filled.get(block.block_id, 0))
        held[head_class.name], tokens[head_class.name] = len(filled), sum(filled.values())
        hidden = sum(block.is_null for own in manager.req_to_blocks.values() for block in own)
        holes[head_class.name] = hidden * head_class.block_tokens
    lengths = [request.num_computed_tokens for request in running.values()]
    windows = [_planned(plan, request, budgets) for request in running.values()]
    unlimited = [c.name for c in plan.classes if c.policy.window is None]
    free, total = pool.get_num_free_blocks(), pool.num_gpu_blocks - 1
    largest = sorted(running.values(), key=lambda r: -r.num_computed_tokens)[:MAX_REQUESTS]
    return Census(
        at=time.time(),
        held=held,
        pending=total - free - sum(held.values()),
        free=free,
        total=total,
        tokens=tokens,
        # An unlimited class holds every token once, however many requests share it; it has holes
        # only of requests whose own budget caps it.
        dense_tokens=tokens[unlimited[0]] + holes[unlimited[0]] if unlimited else sum(lengths),
        planned=sum(
            sum(plan.blocks(length, windows=own).values())
            for length, own in zip(lengths, windows, strict=True)
        ),
        running=len(running),
        requests=[holding_of(scheduler, plan, request, budgets) for request in largest],
        events=events or Events(),
        unpromised=budgets.left() if budgets else free,
        level=budgets.monitor.level if budgets else 0,
        surplus=budgets.accounts.all_surplus() if budgets and budgets.squeezes else 0,
    )


def holding_of(scheduler: Any, plan: Plan, request: Any, budgets: Any = None) -> Holding:
    """What one request of a scheduler holds now."""
    blocks, kept = {}, {}
    for head_class, manager in zip(plan.classes, _managers(scheduler), strict=True):
        own = manager.req_to_blocks.get(request.request_id, ())
        counts = [
            count
            for _, count in _filled_blocks(
                own, request.num_computed_tokens, head_class.block_tokens
            )
        ]
        blocks[head_class.name], kept[head_class.name] = len(counts), sum(counts)
    own = budgets.budget_of(request) if budgets else None
    since, regimes = own.passes[-1] if own and own.passes else (0, None)
    changes = regimes.changes if regimes else ()
    return Holding(
        request.request_id,
        request.num_computed_tokens,
        blocks,
        kept,
        own.level if own else 0,
        [(start, dict(zip(blocks, windows, strict=True))) for start, windows in changes],
        since,
    )


def _planned(plan: Plan, request: Any, budgets: Any) -> Windows:
    """What a request was to keep: while its prompt is read, all it is read by."""
    own = budgets.budget_of(request) if budgets else None
    if own is None or own.regimes is None:
        return plan.windows
    if request.num_computed_tokens > request.num_prompt_tokens:
        return own.windows
    return own.regimes.at(request.num_computed_tokens - 1)


def _managers(scheduler: Any) -> Any:
    return scheduler.kv_cache_manager.coordinator.single_type_managers


def _filled_blocks(blocks: Any, length: int, block_tokens: int) -> Iterator[tuple[Any, int]]:
    """Each block that is not a hole, with the tokens in it of a request of `length` tokens."""
    for index, block in enumerate(blocks):
        if not block.is_null:
            yield block, min(max(length - index * block_tokens, 0), block_tokens)
