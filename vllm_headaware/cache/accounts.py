"""What running requests hold and will still take, as sums that are kept while blocks come and go.

Asking costs a few additions for each class, however many requests run and however long they are.
Plain numbers: nothing here knows torch or vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_headaware.cache.admission import Pool
from vllm_headaware.plan.windows import Windows

OVERCOMMIT = 8.0
"""Pools that running requests may be promised together, should each take all it may."""


@dataclass(frozen=True)
class Claim:
    """A request as the pool sees it.

    Attributes:
        windows: its own; if it keeps more while there is room, what it can be squeezed to.
        reading: what it has while its prompt is read.
        expected: its length when it ends, as far as anybody can tell.
        most: its length when it has generated all it may.
        prefill_tokens: tokens of its prompt that are not settled; 0 when it is decoding.
        num_prompt: tokens of its prompt while it is read; 0 afterwards.
    """

    windows: Windows
    reading: Windows
    expected: int
    most: int
    prefill_tokens: int = 0
    num_prompt: int = 0


@dataclass(slots=True)
class Account:
    """A claim with what it comes to, by class, in blocks.

    Attributes:
        own: blocks that the request holds and nobody else does; where nothing is ever given back,
            all it holds.
    """

    claim: Claim
    promises: list[int]
    worst: int
    own: list[int]
    bounded: list[bool]


class Accounts:
    """The running requests of a pool.

    Args:
        elastic: whether what they hold beyond their promises can be had.
    """

    def __init__(self, pool: Pool, elastic: bool = False) -> None:
        self.pool, self.elastic = pool, elastic
        self._accounts: dict[str, Account] = {}
        kinds = range(len(pool.classes))
        self._need, self._worst, self._prefill = 0, 0, 0
        self._excess, self._bounded = [0 for _ in kinds], [0 for _ in kinds]

    def __len__(self) -> int:
        return len(self._accounts)

    def open(self, request_id: str, claim: Claim, own: Sequence[int]) -> Account:
        """A request runs, or its claim has changed.

        Args:
            own: blocks of its own by class; see Account.
        """
        self.close(request_id)
        bounded = [self.pool.bounded(index, claim.windows) for index in range(len(own))]
        worst = promises = self._promises(claim, claim.expected)
        if claim.most != claim.expected:
            worst = self._promises(claim, claim.most)
        account = Account(claim, promises, sum(worst), list(own), bounded)
        self._accounts[request_id] = account
        self._add(account, 1)
        return account

    def holds(self, account: Account, own: Sequence[int]) -> None:
        """A request's own blocks have changed."""
        for index, now in enumerate(own):
            before = account.own[index]
            if now != before:
                account.own[index] = now
                need, needed = account.promises[index] - now, account.promises[index] - before
                self._need += max(need, 0) - max(needed, 0)
                self._excess[index] += max(-need, 0) - max(-needed, 0)

    def close(self, request_id: str) -> None:
        """A request runs no more."""
        account = self._accounts.pop(request_id, None)
        if account is not None:
            self._add(account, -1)

    def left(self, free: int, claim: Claim | None = None, shared: Sequence[int] = ()) -> int:
        """Blocks promised to nobody; negative when more is promised than there is.

        Args:
            free: blocks anybody may take now.
            claim: of a request that wants to start.
            shared: prefix hits of it that take nothing from the pool, now or later, by class:
                others hold them already.
        """
        left, prefill, pool = free - self._need, self._prefill, self.pool
        promises: Sequence[int] = ()
        if claim is not None:
            prefill += claim.prefill_tokens
            promises = self._promises(claim, claim.expected)
            left -= sum(promises) - sum(shared)
        for index, excess in enumerate(self._excess):
            # Windowed classes also hold the chunks that are being computed, whoever's they are.
            if self._bounded[index] or (claim and pool.bounded(index, claim.windows)):
                lack = pool.chunks(index, prefill) - excess
                left -= lack if self.elastic else max(lack, 0)
        return left

    def overcommitted(self, claim: Claim) -> bool:
        """Whether the pool would be promised too often with one more request, should each take all
        it may."""
        own = sum(self._promises(claim, claim.most))
        return self._worst + own > OVERCOMMIT * self.pool.capacity

    def surplus(self, request_id: str) -> int:
        """Blocks that a request holds beyond what it is promised."""
        account = self._accounts.get(request_id)
        if account is None:
            return 0
        own = zip(account.promises, account.own, account.bounded, strict=True)
        return sum(max(held - promise, 0) for promise, held, bounded in own if bounded)

    def all_surplus(self) -> int:
        """The same of all requests; chunks that are being computed are part of it."""
        return sum(
            excess for excess, bounded in zip(self._excess, self._bounded, strict=True) if bounded
        )

    def _promises(self, claim: Claim, tokens: int) -> list[int]:
        return self.pool.promises(
            claim.windows, claim.reading, tokens, claim.num_prompt, claim.prefill_tokens
        )

    def _add(self, account: Account, sign: int) -> None:
        self._prefill += sign * account.claim.prefill_tokens
        self._worst += sign * account.worst
        for index, (promise, own) in enumerate(zip(account.promises, account.own, strict=True)):
            need = promise - own
            if need > 0:
                self._need += sign * need
            else:
                self._excess[index] -= sign * need
            self._bounded[index] += sign * account.bounded[index]
