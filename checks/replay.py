"""Whether a server's answers are what the plain-torch reference of the rule would have said.

While a server works, Watcher notes which windows its requests have at which positions. Afterwards
judge() has the reference read some of the answers under the very same windows: a token is right if
it is the reference's first choice or as likely, undisturbed or disturbed by what the kernels may be
off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbench.polling import Poller
from testbench.progress import say
from testbench.server import Server
from testbench.streaming import Answer
from vllm_headaware.plan import Plan

TIE = 0.02
"""A token is as likely as another when its log probability lags by less. float32 sums depend on the
batch, and a key or value half way between two steps of int8 is then rounded the other way."""
DISTURBED = 24
"""How often the reference is asked again, disturbed, before it calls a token wrong."""
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Pass:
    """What was seen of a request between a start and its end, or its being put back.

    Attributes:
        since: tokens of its answer that there were when it started.
        computed: its tokens, prompt included, up to which its windows are known.
        changes: (position, windows by head class) in order.
        level: of its budget.
    """

    since: int
    computed: int
    changes: list[tuple[int, dict[str, int | None]]]
    level: int


class Watcher(Poller):
    """Polls a server under a policy while it works: the windows of every request."""

    def __init__(self, server: Server) -> None:
        super().__init__(POLL_SECONDS)
        self.server = server
        self.seen: dict[str, dict[int, Pass]] = {}
        self.max_level, self.most_surplus = 0, 0

    def look(self) -> None:
        """Remember the windows of the requests that run now."""
        self.note(json.loads(self.server.get("/headaware/heads.json")))

    def note(self, state: dict[str, Any]) -> None:
        """What heads.json says."""
        self.max_level = max(self.max_level, state["level"])
        self.most_surplus = max(self.most_surplus, state["surplus_bytes"])
        for request in state["requests"]:
            now = Pass(request["since"], request["tokens"], request["windows"], request["level"])
            self.seen.setdefault(request["request_id"], {})[now.since] = now

    def passes_of(self, request_id: str) -> list[Pass]:
        """Of a request by its client's name, in order; empty where it was never seen running."""
        for name, passes in self.seen.items():
            if f"-{request_id}-" in name:
                return [passes[since] for since in sorted(passes)]
        return []


Lags = Callable[[list[int], list[int], Pass, bool], Sequence[float]]
"""By how much tokens after a context lag behind the best, under a pass's windows; the reference is
disturbed where the last argument says so."""


def judge(
    load: Sequence[tuple[list[int], int]],
    answers: Sequence[Answer],
    watcher: Watcher,
    count: int,
    lags: Lags,
) -> dict[str, Any]:
    """How many tokens of some answers were checked, and which were wrong.

    Args:
        load: prompts, and how many tokens were asked for after each.
        count: answers to check: of all levels, and of those that changed windows most.
    """
    known = [
        (passes[-1].level, sum(len(own.changes) for own in passes), number)
        for number, answer in enumerate(answers)
        if answer.error is None and (passes := watcher.passes_of(answer.request_id))
    ]
    by_level = sorted(known, reverse=True)
    sample = by_level[:: max(len(by_level) // count, 1)][:count]
    checked, worst, wrong = 0, 0.0, []
    for level, changes, number in sample:
        answer, prompt = answers[number], load[number][0]
        passes = watcher.passes_of(answer.request_id)
        ends = [*(own.since for own in passes[1:]), len(answer.tokens)]
        seen = 0
        for own, end in zip(passes, ends, strict=True):
            context = [*prompt, *answer.tokens[: own.since]]
            # The first is a prompt's last query's; what comes after the last look is not known.
            tokens = answer.tokens[own.since : min(end, own.computed - len(prompt) + 1)]
            if not tokens:
                continue
            best = list(lags(context, tokens, own, False))
            for _ in range(DISTURBED):
                if max(best) < TIE:
                    break
                again = lags(context, tokens, own, True)
                best = [min(pair) for pair in zip(best, again, strict=True)]
            seen += len(tokens)
            wrong += [
                {"request": number, "at": len(context) + i, "lag": lag, "pass": asdict(own)}
                for i, lag in enumerate(best)
                if lag >= TIE
            ]
            worst = max(worst, *best)
        checked += seen
        say(
            f"request {number}, level {level}, {changes} changes of windows: {seen} of"
            f" {len(answer.tokens)} tokens checked, {len(wrong)} wrong so far, largest lag"
            f" {worst:.4f}"
        )
    return {
        "requests_checked": len(sample),
        "levels_checked": sorted({level for level, _, _ in sample}),
        "changes_checked": sum(changes for _, changes, _ in sample),
        "tokens_checked": checked,
        "wrong": len(wrong),
        "wrong_tokens": wrong,
        "largest_lag": worst,
    }


def reference_lags(model: Path, plan: Plan) -> Lags:
    """What judge() asks, answered by the reference of a plan."""
    import torch

    from testbench.hf_reference import KERNEL_NOISE, HFReference, rules_of

    torch.manual_seed(0)
    references = [HFReference(model, noise=noise) for noise in (0.0, KERNEL_NOISE)]

    def lags(context: list[int], tokens: list[int], own: Pass, disturbed: bool) -> Sequence[float]:
        reference = references[disturbed]
        changes = [(at, [wide[c.name] for c in plan.classes]) for at, wide in own.changes]
        reference.rules = rules_of(plan, changes=changes)
        return reference.lags(context, tokens).tolist()

    return lags
