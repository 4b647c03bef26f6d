"""Every metric family, in one table. docs/metrics.md is generated from it.

Names start with vllm_headaware_ (vLLM unregisters everything that starts with `vllm:`). Every
family has the labels COMMON besides its own; values of labels come from small known sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "vllm_headaware_"
COMMON = ("model_name", "engine")
MAX_HEAD_SERIES = 1024
"""Most series of one per-head family in one server: layers x KV heads x engines."""

BYTE_BUCKETS = tuple(float(2**n) for n in range(20, 37, 2))
TOKEN_BUCKETS = tuple(float(2**n) for n in range(5, 18))


@dataclass(frozen=True)
class Family:
    """One metric family.

    Attributes:
        name: without the prefix, and without the _total that counters get.
        text: help text; says the unit where the name does not.
        labels: besides COMMON.
        buckets: upper bounds, of histograms.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """As it is queried; histograms add _bucket, _sum and _count."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")

    @property
    def per_head(self) -> bool:
        """Whether it has a series per KV head."""
        return "kv_head" in self.labels


FAMILIES = (
    Family(
        "info", "gauge", "1, with what the server runs under.", ("policy", "version", "profile")
    ),
    Family("census_timestamp_seconds", "gauge", "Unix time at which the gauges were counted."),
    Family("kv_capacity_bytes", "gauge", "Bytes of all blocks of the pool."),
    Family("kv_used_bytes", "gauge", "Bytes of the blocks that have an owner."),
    Family(
        "kv_free_bytes", "gauge", "Bytes of the blocks anybody may take, cached prefixes included."
    ),
    Family(
        "kv_dense_equivalent_bytes",
        "gauge",
        "Bytes the tokens held now would take with every head full, without block rounding."
        " A prefix shared by requests counts once.",
    ),
    Family(
        "kv_planned_bytes",
        "gauge",
        "Bytes the plan gives the running requests, each on its own, while decoding: what was"
        " asked for. A shared prefix brings kv_used_bytes below it, a prefill above it.",
    ),
    Family(
        "kv_tokens", "gauge", "Tokens held by the unlimited heads: the context of all requests."
    ),
    Family("kv_requests", "gauge", "Requests that hold blocks."),
    Family("kv_class_blocks", "gauge", "Blocks held by a head class.", ("head_class",)),
    Family("kv_class_bytes", "gauge", "Bytes held by a head class.", ("head_class",)),
    Family(
        "kv_class_tokens",
        "gauge",
        "Tokens whose K and V a KV head of the class holds.",
        ("head_class",),
    ),
    Family("kv_layer_bytes", "gauge", "Bytes held by a layer, over its KV heads.", ("layer",)),
    Family(
        "kv_layer_tokens",
        "gauge",
        "Tokens held by the KV heads of a layer, added up over the heads.",
        ("layer",),
    ),
    Family(
        "kv_head_bytes",
        "gauge",
        "Bytes held by a KV head, its share of padding included.",
        ("layer", "kv_head", "head_class"),
    ),
    Family(
        "kv_head_tokens",
        "gauge",
        "Tokens whose K and V a KV head holds.",
        ("layer", "kv_head", "head_class"),
    ),
    Family(
        "head_series_dropped", "gauge", "Per-head series that are not exported (see Cardinality)."
    ),
    Family("class_heads", "gauge", "KV heads of a class, by the plan.", ("head_class",)),
    Family("class_sink_tokens", "gauge", "First tokens the class always keeps.", ("head_class",)),
    Family(
        "class_window_tokens",
        "gauge",
        "Last tokens the class keeps; no series for a class that keeps everything.",
        ("head_class",),
    ),
    Family("class_block_tokens", "gauge", "Tokens per block of the class.", ("head_class",)),
    Family(
        "budget_asked_tokens",
        "gauge",
        "Tokens per KV head asked for with --kv-budget; 0: windows were asked for.",
    ),
    Family(
        "budget_achieved_tokens",
        "gauge",
        "Tokens a KV head keeps of a request of the longest length, mean over heads, by the plan.",
    ),
    Family(
        "budget_level",
        "gauge",
        "How far budgets of new requests are tightened: 0 is the plan, budget_level_max the floor.",
    ),
    Family("budget_level_max", "gauge", "Level at which every window stands at its floor."),
    Family(
        "budget_window_tokens",
        "gauge",
        "Last tokens the class keeps of new requests, at the present level; no series for a class"
        " that keeps everything.",
        ("head_class",),
    ),
    Family(
        "kv_unpromised_bytes",
        "gauge",
        "Bytes that running requests will not need before they end: room for new ones.",
    ),
    Family(
        "budget_changes",
        "counter",
        "Changes of the level by one. tighten: memory ran low; relax: there is room again.",
        ("direction",),
    ),
    Family("requests_started", "counter", "Requests that started, by level.", ("level",)),
    Family(
        "answer_tokens",
        "counter",
        "Tokens of answers that ended. expected: when they started, by what admission had learned;"
        " real: at their end.",
        ("kind",),
    ),
    Family(
        "kv_surplus_bytes",
        "gauge",
        "Bytes that running requests hold beyond their windows, as long as there is room"
        " (--kv-elastic all); what is short is taken from here first.",
    ),
    Family(
        "blocks_squeezed",
        "counter",
        "Blocks taken from running requests. surplus: beyond the windows they started with; floor:"
        " their windows were tightened; compacted: heads chose what they keep of a prompt.",
        ("reason",),
    ),
    Family(
        "preemptions_avoided",
        "counter",
        "Steps in which a running request got blocks that were squeezed out of others.",
    ),
    Family(
        "blocks_freed",
        "counter",
        "Blocks returned to the pool. window: they left a window; finished, preempted: their"
        " request ended or was put back.",
        ("reason",),
    ),
    Family("bytes_freed", "counter", "Bytes of the same blocks.", ("reason",)),
    Family(
        "prefix_hit_blocks",
        "counter",
        "Blocks a head class took over from the prefix cache.",
        ("head_class",),
    ),
    Family(
        "prefix_hit_bytes",
        "counter",
        "Bytes of the same blocks.",
        ("head_class",),
    ),
    Family(
        "request_kv_bytes",
        "histogram",
        "Bytes a finished request held at its end, shared blocks included.",
        (),
        BYTE_BUCKETS,
    ),
    Family(
        "head_kept_tokens",
        "histogram",
        "Tokens a KV head of the class kept of a finished request. One observation per request and"
        " class stands for class_heads heads, since all heads of a class keep the same.",
        ("head_class",),
        TOKEN_BUCKETS,
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}
