"""Prometheus metrics of the KV policy, on vLLM's own /metrics.

Names start with vllm_headaware_ (vLLM unregisters everything that starts with `vllm:`). All bytes
are blocks really held times bytes per block: padding included, nothing nominal. Per-head series
are one gauge of layers x KV heads, exported up to MAX_HEAD_SERIES.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from vllm_headaware import __version__
from vllm_headaware.cache.census import Census
from vllm_headaware.plan import Plan

MAX_HEAD_SERIES = 1024
PENDING = "pending"
"""Label of blocks whose request is gone but whose last step is still in flight."""

_GAUGES = {
    "info": ("1, with what the server runs under.", ("policy", "version", "profile")),
    "kv_capacity_bytes": ("Bytes of all blocks of the pool.", ()),
    "kv_used_bytes": ("Bytes of the blocks that have an owner.", ()),
    "kv_free_bytes": ("Bytes of the blocks anybody may take, cached prefixes included.", ()),
    "kv_dense_equivalent_bytes": ("Bytes the same tokens would take with every head full.", ()),
    "kv_tokens": ("Tokens of the running requests.", ()),
    "kv_class_blocks": ("Blocks held by a head class.", ("head_class",)),
    "kv_class_bytes": ("Bytes held by a head class.", ("head_class",)),
    "kv_layer_bytes": ("Bytes held by a layer, over its KV heads.", ("layer",)),
    "kv_head_bytes": ("Bytes held by a KV head.", ("layer", "kv_head", "head_class")),
    "head_series_dropped": ("Per-head series that are not exported, to bound cardinality.", ()),
}
_COUNTERS = {
    "blocks_freed": (
        "Blocks returned to the pool: window = left a window, finished, preempted.",
        ("reason",),
    ),
    "bytes_freed": ("Bytes of the same blocks.", ("reason",)),
}
_COMMON = ("model_name", "engine")


class HeadAwareMetrics:
    """The metric families, fed with one census at a time.

    Args:
        plan: gives bytes to blocks.
        profile: checksum of the head profile.
        engines: indices of the data-parallel engines behind this front end.
    """

    def __init__(
        self,
        plan: Plan,
        model_name: str | list[str],
        profile: str,
        engines: Sequence[int],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.plan = plan
        self.model_name = model_name if isinstance(model_name, str) else model_name[0]
        self.gauges: dict[str, Gauge] = {
            name: _family(Gauge, name, text, labels, registry)
            for name, (text, labels) in _GAUGES.items()
        }
        self.counters: dict[str, Counter] = {
            name: _family(Counter, name, text, labels, registry)
            for name, (text, labels) in _COUNTERS.items()
        }
        self.freed: dict[int, dict[str, int]] = {engine: {} for engine in engines}
        total = plan.geometry.num_heads_total
        self.per_head = total <= MAX_HEAD_SERIES
        for engine in engines:
            short = profile.removeprefix("sha256:")[:12]
            self._set("info", 1, engine, plan.policy, __version__, short)
            self._set("head_series_dropped", 0 if self.per_head else total, engine)
            nothing = {c.name: 0 for c in plan.classes}
            self.update(Census(nothing, 0, 0, 0, 0), engine)

    def update(self, census: Census, engine: int) -> None:
        """Show a census; counters move by what was freed since the last one."""
        plan, block_bytes = self.plan, self.plan.block_bytes
        self._set("kv_capacity_bytes", census.total * block_bytes, engine)
        self._set("kv_used_bytes", census.used * block_bytes, engine)
        self._set("kv_free_bytes", census.free * block_bytes, engine)
        self._set("kv_dense_equivalent_bytes", plan.dense_bytes(census.tokens), engine)
        self._set("kv_tokens", census.tokens, engine)
        for name, blocks in {**census.held, PENDING: census.pending}.items():
            self._set("kv_class_blocks", blocks, engine, name)
            self._set("kv_class_bytes", blocks * block_bytes, engine, name)
        per_head = [plan.head_bytes(i, census.held[c.name]) for i, c in enumerate(plan.classes)]
        for layer, row in enumerate(plan.assignment):
            label = f"{layer:02d}"
            self._set("kv_layer_bytes", sum(per_head[i] for i in row), engine, label)
            if self.per_head:
                for head, index in enumerate(row):
                    name = plan.classes[index].name
                    self._set("kv_head_bytes", per_head[index], engine, label, str(head), name)
        seen = self.freed.setdefault(engine, {})
        for reason, blocks in census.freed.items():
            new = blocks - seen.get(reason, 0)
            seen[reason] = blocks
            self._add("blocks_freed", new, engine, reason)
            self._add("bytes_freed", new * block_bytes, engine, reason)

    def _set(self, name: str, value: float, engine: int, *labels: str) -> None:
        self.gauges[name].labels(self.model_name, str(engine), *labels).set(value)

    def _add(self, name: str, value: float, engine: int, *labels: str) -> None:
        self.counters[name].labels(self.model_name, str(engine), *labels).inc(value)


_families: dict[tuple[int, str], Any] = {}


def _family(
    kind: type, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry
) -> Any:
    """A metric family, made once per registry: several engines may live in one process."""
    key = (id(registry), name)
    if key not in _families:
        extra = {"multiprocess_mode": "mostrecent"} if kind is Gauge else {}
        _families[key] = kind(
            f"vllm_headaware_{name}", text, (*_COMMON, *labels), registry=registry, **extra
        )
    return _families[key]
