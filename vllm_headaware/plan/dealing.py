"""KV heads dealt to classes and tensor-parallel ranks, while a plan is being made."""

from __future__ import annotations

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.policies.base import HeadPolicy


class Dealing:
    """KV heads by class and tensor-parallel rank, while a plan is being made."""

    def __init__(
        self,
        policies: tuple[HeadPolicy, ...],
        token_bytes: list[int],
        classes: list[list[int]],
        ranks: list[list[int]],
        tensor_parallel_size: int,
    ) -> None:
        used = sorted({index for row in classes for index in row})
        self.policies = tuple(policies[index] for index in used)
        self.token_bytes = [token_bytes[index] for index in used]
        self.classes = [[used.index(index) for index in row] for row in classes]
        self.best_first = sorted(
            ((y, h) for y, row in enumerate(ranks) for h in range(len(row))),
            key=lambda at: ranks[at[0]][at[1]],
        )
        self.tp = tensor_parallel_size
        self.per_rank = len(classes[0]) // tensor_parallel_size

    def counts(self, rank: int) -> list[int]:
        """Heads of each class on a rank."""
        low, high = rank * self.per_rank, (rank + 1) * self.per_rank
        on_rank = [index for row in self.classes for index in row[low:high]]
        return [on_rank.count(index) for index in range(len(self.policies))]

    def promote(self, index: int, rank: int) -> bool:
        """Move the best head of the less generous classes of a rank up to class `index`.

        The last head of a class on a rank stays, since every rank must hold every class.
        """
        counts = self.counts(rank)
        for y, h in self.best_first:
            own = self.classes[y][h]
            if h // self.per_rank == rank and own > index and counts[own] > 1:
                self.classes[y][h] = index
                return True
        return False

    def give_every_rank_every_class(self) -> None:
        for rank in range(self.tp):
            for index, policy in enumerate(self.policies):
                if self.counts(rank)[index] == 0 and not self.promote(index, rank):
                    raise HeadAwareError(
                        f"tensor-parallel rank {rank} would have no {policy.name} heads;"
                        " use a smaller --tensor-parallel-size or a smaller --kv-retrieval-share"
                    )

    def block_bytes(self, block_tokens: tuple[int, ...], counts: list[int]) -> int:
        """Bytes of one block on a rank with `counts` heads of each class."""
        parts = zip(counts, block_tokens, self.token_bytes, strict=True)
        return max(heads * tokens * size for heads, tokens, size in parts)

    def fill_spare_room(self, block_tokens: tuple[int, ...]) -> None:
        """Promote heads into room that blocks have anyway: more history for the same bytes."""
        for rank in range(self.tp):
            block = self.block_bytes(block_tokens, self.counts(rank))
            for index, tokens in enumerate(block_tokens[:-1]):
                size = tokens * self.token_bytes[index]
                while (self.counts(rank)[index] + 1) * size <= block:
                    if not self.promote(index, rank):
                        break
