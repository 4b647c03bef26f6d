"""What the live page shows: the last census of every engine, the last minutes, and the plan.

With several front ends a census reaches only one of them. Each then leaves what it knows in the
directory in which prometheus_client shares metrics between processes, and reads the others'.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import deque
from pathlib import Path
from typing import Any

from vllm_headaware.cache.census import Census, Events, dense_bytes, empty_census
from vllm_headaware.plan import Plan
from vllm_headaware.plan.plan_json import plan_to_dict

HISTORY_SECONDS = 300
HISTORY_STEP_SECONDS = 1.0


class LiveState:
    """The last census by engine and a short history, as plain JSON values.

    Args:
        plan: gives bytes to blocks.
        model_name: as clients name it.
        profile: checksum of the head profile.
        shared: directory that all front ends of a server can write; None when there is one only.
    """

    def __init__(
        self, plan: Plan, model_name: str, profile: str, shared: Path | None = None
    ) -> None:
        self.plan, self.model_name, self.profile = plan, model_name, profile
        multiprocess = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self.shared = shared or (Path(multiprocess) if multiprocess else None)
        self.name = f"headaware-{os.getpid()}.json"
        self._own: dict[str, dict[str, Any]] = {}

    def update(self, census: Census, engine: int) -> None:
        """Keep a census; older history goes."""
        state = self._own.setdefault(str(engine), {"history": deque()})
        bare = dataclasses.replace(census, events=Events())
        state["census"] = dataclasses.asdict(bare)
        history = state["history"]
        if not history or census.at - history[-1][0] >= HISTORY_STEP_SECONDS or not census.used:
            block, plan = self.plan.block_bytes, self.plan
            history.append([census.at, census.used * block, dense_bytes(plan, census)])
        while history and census.at - history[0][0] > HISTORY_SECONDS:
            history.popleft()
        if self.shared:
            text = json.dumps(
                {e: {**s, "history": list(s["history"])} for e, s in self._own.items()}
            )
            draft = self.shared / (self.name + ".new")
            draft.write_text(text, encoding="utf-8")
            draft.rename(self.shared / self.name)

    def heads(self) -> dict[str, Any]:
        """What /headaware/heads.json answers: everything that moves, in bytes and tokens."""
        engines = self._all()
        censuses = [Census.from_dict(state["census"]) for state in engines.values()]
        plan, block = self.plan, self.plan.block_bytes
        censuses = censuses or [empty_census(plan)]
        held = {c.name: sum(census.held[c.name] for census in censuses) for c in plan.classes}
        tokens = {c.name: sum(census.tokens[c.name] for census in censuses) for c in plan.classes}
        per_head = [plan.head_bytes(i, held[c.name]) for i, c in enumerate(plan.classes)]
        return {
            "at": max(census.at for census in censuses),
            "engines": max(len(engines), 1),
            "capacity_bytes": block * sum(census.total for census in censuses),
            "used_bytes": block * sum(census.used for census in censuses),
            "pending_bytes": block * sum(census.pending for census in censuses),
            "planned_bytes": block * sum(census.planned for census in censuses),
            "dense_equivalent_bytes": sum(dense_bytes(plan, census) for census in censuses),
            "tokens": sum(census.dense_tokens for census in censuses),
            "classes": [
                {
                    "name": c.name,
                    "blocks": held[c.name],
                    "bytes": held[c.name] * block,
                    "tokens": tokens[c.name],
                }
                for c in plan.classes
            ],
            "head_bytes": [[per_head[i] for i in row] for row in plan.assignment],
            "head_tokens": [[tokens[plan.classes[i].name] for i in row] for row in plan.assignment],
            "unpromised_bytes": block * sum(census.unpromised for census in censuses),
            "surplus_bytes": block * sum(census.surplus for census in censuses),
            "level": max(census.level for census in censuses),
            "running": sum(census.running for census in censuses),
            "requests": [
                {
                    "request_id": holding.request_id,
                    "tokens": holding.tokens,
                    "kept_tokens": holding.kept,
                    "level": holding.level,
                    "windows": holding.windows,
                    "since": holding.since,
                    "bytes": block * sum(holding.blocks.values()),
                    "dense_equivalent_bytes": plan.dense_bytes(holding.tokens),
                }
                for census in censuses
                for holding in census.requests
            ],
            "history": _merge([state["history"] for state in engines.values()]),
        }

    def plan_json(self) -> dict[str, Any]:
        """What /headaware/plan.json answers: what does not move."""
        values = plan_to_dict(self.plan)
        for entry, head_class in zip(values["classes"], self.plan.classes, strict=True):
            entry["heads"] = head_class.num_heads
        return {
            "model_name": self.model_name,
            "profile": self.profile,
            "block_bytes": self.plan.block_bytes,
            **values,
        }

    def _all(self) -> dict[str, Any]:
        """State by engine: the newest of what any front end knows, with the history of all."""
        known = [self._own]
        if self.shared:
            for path in sorted(self.shared.glob("headaware-*.json")):
                if path.name != self.name:
                    known.append(json.loads(path.read_text(encoding="utf-8")))
        merged: dict[str, Any] = {}
        for states in known:
            for engine, state in states.items():
                kept = merged.setdefault(engine, {"census": state["census"], "history": []})
                if state["census"]["at"] > kept["census"]["at"]:
                    kept["census"] = state["census"]
                kept["history"] = sorted([*kept["history"], *state["history"]])
        return merged


def _merge(histories: list[list[list[float]]]) -> list[list[float]]:
    """One history of [time, used bytes, dense bytes]: at each time the sum of the engines' last."""
    points = sorted(
        (point, engine) for engine, history in enumerate(histories) for point in history
    )
    last = [[0.0, 0.0] for _ in histories]
    merged: list[list[float]] = []
    for (at, used, dense), engine in points:
        last[engine] = [used, dense]
        merged.append([at, sum(u for u, _ in last), sum(d for _, d in last)])
    return merged
