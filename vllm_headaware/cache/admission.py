"""Who may start, and at which budget, so that nobody who started runs out of blocks.

A request gets its windows when it starts and keeps them for life. `Pool` answers how many blocks
are promised to nobody: free ones, less what running requests will still take until they reach
their full length. `BudgetMonitor` answers how tight the windows of the next request are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_headaware.plan import HeadClass
from vllm_headaware.plan.windows import Windows

LOW_WATER = 0.1
"""Share of the pool: with less than this promised to nobody, budgets tighten."""
HIGH_WATER = 0.25
"""Share of the pool: with more than this promised to nobody for a while, budgets relax."""
PATIENCE = 32
"""Engine steps without pressure before budgets relax by one level."""


@dataclass
class BudgetMonitor:
    """The level of the ladder (0 = the plan's windows) that the next request gets.

    It rises by one when a start leaves less than LOW_WATER, or when a request would have to wait;
    it falls by one after PATIENCE steps without either, if more than HIGH_WATER is free.

    Attributes:
        depth: levels of the ladder.
        level: from 0 to depth - 1.
        calm: steps since pressure was last felt.
    """

    depth: int
    level: int = 0
    calm: int = 0
    changes: dict[str, int] = field(default_factory=lambda: {"tighten": 0, "relax": 0})

    @property
    def at_floor(self) -> bool:
        return self.level == self.depth - 1

    def tighten(self) -> bool:
        """One level up the ladder; False at its end."""
        self.calm = 0
        if self.at_floor:
            return False
        self.level += 1
        self.changes["tighten"] += 1
        return True

    def started(self, share_left: float) -> bool:
        """A request started; returns whether that tightened the budgets of the next.

        Args:
            share_left: share of the pool (0 to 1) now promised to nobody.
        """
        return share_left < LOW_WATER and self.tighten()

    def reset(self) -> None:
        """Nothing is running: back to level 0."""
        self.changes["relax"] += self.level
        self.level = self.calm = 0

    def may_relax(self) -> bool:
        """Whether it is time to look at the pool: a step without pressure has passed."""
        self.calm += 1
        return self.level > 0 and self.calm >= PATIENCE

    def relax(self, share_left: float) -> bool:
        """One level down, if the pool allows it."""
        if self.level == 0 or share_left <= HIGH_WATER:
            return False
        self.level -= 1
        self.calm = 0
        self.changes["relax"] += 1
        return True


@dataclass(frozen=True)
class Tenant:
    """A request as the pool sees it.

    Attributes:
        windows: its own.
        full_tokens: its length when it has generated all it may.
        blocks: its blocks of every class, null blocks for holes.
        prefill_tokens: tokens of its prompt that are not settled; 0 when it is decoding.
        num_prompt: tokens of its prompt while it is read; 0 afterwards.
    """

    windows: Windows
    full_tokens: int
    blocks: Sequence[Sequence[Any]]
    prefill_tokens: int
    num_prompt: int = 0


class Pool:
    """Arithmetic of one block pool shared by head classes.

    Args:
        classes: of the plan.
        capacity: blocks of the pool.
        max_in_flight: tokens that may be scheduled and not settled, over all requests.
        steps_in_flight: engine steps that may run at once: tokens of a decoding request in flight.
    """

    def __init__(
        self,
        classes: Sequence[HeadClass],
        capacity: int,
        max_in_flight: int,
        steps_in_flight: int = 1,
    ) -> None:
        self.classes, self.capacity = classes, capacity
        self.max_in_flight, self.steps_in_flight = max_in_flight, steps_in_flight

    def fits_alone(self, windows: Windows, full_tokens: int, num_prompt: int) -> bool:
        """Whether the pool can ever hold a request of this length, at the peak of its prefill and
        at its end."""
        own = list(zip(self.classes, windows, strict=True))
        # Windows become narrower a few steps after the prompt's last token was scheduled.
        read = num_prompt + self.steps_in_flight
        peaks = (
            sum(c.most_blocks(full_tokens, window, self.max_in_flight) for c, window in own),
            sum(c.most_blocks(read, c.reading_window(w), self.max_in_flight) for c, w in own),
        )
        return max(peaks) <= self.capacity

    def left(self, free: int, tenants: Sequence[Tenant], hits: Tenant | None = None) -> int:
        """Blocks promised to nobody; negative when more is promised than there is.

        Args:
            free: blocks anybody may take now.
            tenants: requests that hold blocks.
            hits: a request that wants to start; its blocks are its prefix hits.
        """
        left = free
        prefill = sum(tenant.prefill_tokens for tenant in tenants)
        prefill += hits.prefill_tokens if hits else 0
        for index, head_class in enumerate(self.classes):
            excess = 0
            for tenant in tenants:
                need = self._promise(head_class, index, tenant) - _own(head_class, tenant, index)
                left -= max(need, 0)
                excess += max(-need, 0)
            if hits:
                left -= self._promise(head_class, index, hits) - _shared(head_class, hits, index)
            # Windowed classes also hold the chunks that are being computed, whoever's they are.
            chunks = -(-min(prefill, self.max_in_flight) // head_class.block_tokens)
            if any(_bounded(head_class, index, t) for t in (*tenants, *([hits] if hits else []))):
                left -= max(chunks - excess, 0)
        return left

    def _promise(self, head_class: HeadClass, index: int, tenant: Tenant) -> int:
        window = tenant.windows[index]
        most = max(
            head_class.most_blocks(tokens, own, self.steps_in_flight)
            for tokens, own in (
                (tenant.full_tokens, window),
                (tenant.num_prompt, head_class.reading_window(window)),
            )
        )
        if not _bounded(head_class, index, tenant) or not tenant.prefill_tokens:
            return most
        return min(most + 1, -(-tenant.full_tokens // head_class.block_tokens))


def _bounded(head_class: HeadClass, index: int, tenant: Tenant) -> bool:
    """Whether blocks of the class go back while the request runs: by its window, or by score."""
    return tenant.windows[index] is not None or head_class.policy.heavy_hitters is not None


def _own(head_class: HeadClass, tenant: Tenant, index: int) -> int:
    """Blocks that count towards a running request's promise.

    A block that leaves a window comes free only if nobody shares it, so shared ones do not count;
    what never leaves counts, shared or not.
    """
    blocks = tenant.blocks[index]
    if not _bounded(head_class, index, tenant):
        return len(blocks)
    return sum(block.ref_cnt == 1 and not block.is_null for block in blocks)


def _shared(head_class: HeadClass, tenant: Tenant, index: int) -> int:
    """Prefix hits that take nothing from the pool, now or later: others hold them already."""
    if _bounded(head_class, index, tenant):
        return 0
    return sum(block.ref_cnt > 0 for block in tenant.blocks[index])
