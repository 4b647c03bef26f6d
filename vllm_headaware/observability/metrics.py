"""Prometheus metrics of the KV policy, on vLLM's own /metrics.

All bytes are blocks really held times bytes per block: padding included, nothing nominal. The
families stand in metric_families.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from vllm_headaware import __version__
from vllm_headaware.cache.census import Census, dense_bytes, empty_census
from vllm_headaware.config.request import RequestLimits
from vllm_headaware.observability.live import LiveState
from vllm_headaware.observability.metric_families import (
    COMMON,
    FAMILIES,
    MAX_HEAD_SERIES,
    PREFIX,
    Family,
)
from vllm_headaware.plan import Plan
from vllm_headaware.plan.ladder import Ladders

PENDING = "pending"
"""Label of blocks whose request is gone but whose last step is still in flight."""


class HeadAwareMetrics:
    """The metric families and the live page's state, fed with one census at a time.

    Args:
        plan: gives bytes to blocks.
        profile: checksum of the head profile.
        engines: indices of the data-parallel engines behind this front end.
        limits: how far budgets may be tightened.
    """

    def __init__(
        self,
        plan: Plan,
        model_name: str | list[str],
        profile: str,
        engines: Sequence[int],
        registry: CollectorRegistry = REGISTRY,
        limits: RequestLimits | None = None,
    ) -> None:
        self.plan = plan
        self.model_name = model_name if isinstance(model_name, str) else model_name[0]
        self.live = LiveState(plan, self.model_name, profile)
        self._families = {family.name: _make(family, registry) for family in FAMILIES}
        self.ladder = Ladders(plan, limits or RequestLimits()).default
        self._children: dict[tuple[Any, ...], Any] = {}
        heads = plan.geometry.num_heads_total
        self.per_head = heads * len(engines) <= MAX_HEAD_SERIES
        dropped = 0 if self.per_head else heads * sum(family.per_head for family in FAMILIES)
        for engine in engines:
            short = profile.removeprefix("sha256:")[:12]
            self._set("info", 1, engine, plan.policy, __version__, short)
            self._set("head_series_dropped", dropped, engine)
            for head_class in plan.classes:
                name, policy = head_class.name, head_class.policy
                self._set("class_heads", head_class.num_heads, engine, name)
                self._set("class_sink_tokens", policy.sink, engine, name)
                self._set("class_block_tokens", head_class.block_tokens, engine, name)
                if policy.window is not None:
                    self._set("class_window_tokens", policy.window, engine, name)
                self._child("head_kept_tokens", engine, name)
                self._add("prefix_hit_blocks", 0, engine, name)
                self._add("prefix_hit_bytes", 0, engine, name)
            self._child("request_kv_bytes", engine)
            self._set("budget_asked_tokens", plan.budget, engine)
            self._set("budget_achieved_tokens", plan.mean_tokens(), engine)
            self._set("budget_level_max", len(self.ladder) - 1, engine)
            for direction in ("tighten", "relax"):
                self._add("budget_changes", 0, engine, direction)
            for level in range(len(self.ladder)):
                self._add("requests_started", 0, engine, str(level))
            for kind in ("expected", "real"):
                self._add("answer_tokens", 0, engine, kind)
            for reason in ("surplus", "floor", "compacted"):
                self._add("blocks_squeezed", 0, engine, reason)
            self._add("preemptions_avoided", 0, engine)
            self._show(empty_census(plan), engine)

    def update(self, census: Census, engine: int) -> None:
        """Show a census and count its events."""
        self.live.update(census, engine)
        self._show(census, engine)
        block_bytes = self.plan.block_bytes
        for reason, blocks in census.events.freed.items():
            self._add("blocks_freed", blocks, engine, reason)
            self._add("bytes_freed", blocks * block_bytes, engine, reason)
        for name, blocks in census.events.prefix_hits.items():
            self._add("prefix_hit_blocks", blocks, engine, name)
            self._add("prefix_hit_bytes", blocks * block_bytes, engine, name)
        for direction, changes in census.events.level_changes.items():
            self._add("budget_changes", changes, engine, direction)
        for level, started in census.events.started.items():
            self._add("requests_started", started, engine, level)
        for kind, tokens in census.events.growth.items():
            self._add("answer_tokens", tokens, engine, kind)
        for reason, blocks in census.events.squeezed.items():
            self._add("blocks_squeezed", blocks, engine, reason)
        self._add("preemptions_avoided", census.events.avoided.get("preemptions", 0), engine)
        for holding in census.events.finished:
            held = sum(holding.blocks.values()) * block_bytes
            self._child("request_kv_bytes", engine).observe(held)
            for name, kept in holding.kept.items():
                self._child("head_kept_tokens", engine, name).observe(kept)

    def _show(self, census: Census, engine: int) -> None:
        plan, block_bytes = self.plan, self.plan.block_bytes
        self._set("census_timestamp_seconds", census.at, engine)
        self._set("kv_capacity_bytes", census.total * block_bytes, engine)
        self._set("kv_used_bytes", census.used * block_bytes, engine)
        self._set("kv_free_bytes", census.free * block_bytes, engine)
        self._set("kv_dense_equivalent_bytes", dense_bytes(plan, census), engine)
        self._set("kv_planned_bytes", census.planned * block_bytes, engine)
        self._set("kv_tokens", census.dense_tokens, engine)
        self._set("kv_requests", census.running, engine)
        self._set("kv_unpromised_bytes", census.unpromised * block_bytes, engine)
        self._set("kv_surplus_bytes", census.surplus * block_bytes, engine)
        self._set("budget_level", census.level, engine)
        for head_class, window in zip(plan.classes, self.ladder[census.level], strict=True):
            if window is not None:
                self._set("budget_window_tokens", window, engine, head_class.name)
        for name, blocks in {**census.held, PENDING: census.pending}.items():
            self._set("kv_class_blocks", blocks, engine, name)
            self._set("kv_class_bytes", blocks * block_bytes, engine, name)
            self._set("kv_class_tokens", census.tokens.get(name, 0), engine, name)
        names = [c.name for c in plan.classes]
        head_bytes = [plan.head_bytes(i, census.held[name]) for i, name in enumerate(names)]
        head_tokens = [census.tokens[name] for name in names]
        for layer, row in enumerate(plan.assignment):
            label = f"{layer:02d}"
            self._set("kv_layer_bytes", sum(head_bytes[i] for i in row), engine, label)
            self._set("kv_layer_tokens", sum(head_tokens[i] for i in row), engine, label)
            if self.per_head:
                for head, i in enumerate(row):
                    labels = (label, str(head), names[i])
                    self._set("kv_head_bytes", head_bytes[i], engine, *labels)
                    self._set("kv_head_tokens", head_tokens[i], engine, *labels)

    def _set(self, name: str, value: float, engine: int, *labels: str) -> None:
        self._child(name, engine, *labels).set(value)

    def _add(self, name: str, value: float, engine: int, *labels: str) -> None:
        self._child(name, engine, *labels).inc(value)

    def _child(self, name: str, engine: int, *labels: str) -> Any:
        key = (name, engine, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._families[name].labels(self.model_name, str(engine), *labels)
            self._children[key] = child
        return child


_made: WeakKeyDictionary[CollectorRegistry, dict[str, Any]] = WeakKeyDictionary()


def _make(family: Family, registry: CollectorRegistry) -> Any:
    """A metric family, made once per registry: several engines may live in one process."""
    made = _made.setdefault(registry, {})
    if family.name not in made:
        labels = (*COMMON, *family.labels)
        name, text = PREFIX + family.name, family.text
        if family.kind == "gauge":
            made[family.name] = Gauge(
                name, text, labels, registry=registry, multiprocess_mode="mostrecent"
            )
        elif family.kind == "counter":
            made[family.name] = Counter(name, text, labels, registry=registry)
        else:
            made[family.name] = Histogram(
                name, text, labels, registry=registry, buckets=family.buckets
            )
    return made[family.name]
