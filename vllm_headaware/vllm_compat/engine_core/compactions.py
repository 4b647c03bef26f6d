"""Prompts that have been read are compacted: unlimited heads keep a share of the tokens.

Each head keeps its own best ones, as many as every other of its class. A worker moves their rows
together at the end of the prompt, in front of what is generated; to vLLM, and to the kernels, the
request has from then on a window that begins there. Blocks that others share or may find again are
not written to, as long as there are free ones to take instead.
"""

from __future__ import annotations

from typing import Any

from vllm_headaware.cache.compaction import Move
from vllm_headaware.vllm_compat.engine_core.request_budget import Running


class Compactions:
    """Compactions of one scheduler's requests.

    Args:
        budgets: of the same scheduler.
        index: of the class whose heads keep a share.
    """

    def __init__(self, budgets: Any, index: int) -> None:
        self.budgets, self.index = budgets, index
        self.head_class = budgets.plan.classes[index]
        self._moves: dict[str, Move] = {}

    def consider(self, running: Running) -> None:
        """A request is about to compute more tokens: compact it, if its prompt has been read."""
        budgets, index, request = self.budgets, self.index, running.request
        own, num_tokens = budgets.budget_of(request), request.num_computed_tokens
        if num_tokens < request.num_prompt_tokens + own.passes[-1][0]:
            return
        running.compacts = False
        window = self.head_class.kept_window(num_tokens)
        if own.full or window is None or running.regimes.windows[index] is not None:
            return
        first = -window // self.head_class.block_tokens
        name, manager = request.request_id, budgets.managers[index]
        free = budgets.block_pool.get_num_free_blocks()
        moved = manager.compact(name, first)
        if moved is None:
            running.compacts = True  # when there is room
            return
        own.compacted[index] = window
        before = running.regimes.windows
        running.regimes.squeeze(num_tokens, (*before[:index], window, *before[index + 1 :]))
        budgets.tell(request)
        running.classes[index] = manager.at_hand(name)
        budgets.events["squeezed"]["compacted"] += budgets.block_pool.get_num_free_blocks() - free
        budgets.open(request)
        self._moves[name] = Move(index, moved[0], moved[1], first, num_tokens)

    def take(self, scheduled: Any) -> dict[str, Move]:
        """What the workers of a step have to move."""
        moves, self._moves = self._moves, {}
        # Their blocks are others' from now on.
        assert moves.keys() <= scheduled.keys(), "a request that has moved runs in the same step"
        return moves

    def forget(self, request_id: str) -> None:
        """A request has given up its blocks."""
        self._moves.pop(request_id, None)


def make_compactions(budgets: Any) -> Compactions | None:
    """None where every head keeps all of a prompt."""
    keeping = [i for i, c in enumerate(budgets.plan.classes) if c.policy.keep < 1]
    return Compactions(budgets, keeping[0]) if keeping else None
