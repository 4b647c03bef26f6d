"""The panels of the three dashboards: what is asked, in which unit, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "gauge", "bargauge", "table", "matrix", "heatmap"]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        queries: names in QUERIES -> legend.
        unit: Grafana's unit id.
        width: of the 24 columns.
    """

    title: str
    description: str
    kind: Kind
    unit: str
    queries: dict[str, str]
    width: int = 12
    height: int = 8
    stacked: bool = False
    max: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `uid` is also its file name."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]


OVERVIEW = Dashboard(
    "headaware-overview",
    "vLLM headaware: overview",
    "What the KV heads hold, what that saves, and how the server does.",
    (
        Panel(
            "Saving against a dense cache",
            "1 - bytes held / bytes a dense cache of the same tokens would take, without block"
            " rounding. Short requests save nothing or less than nothing: every class holds at"
            " least one block. No data while idle.",
            "stat",
            "percentunit",
            {"saving": "saving"},
            width=6,
        ),
        Panel(
            "Pool in use",
            "Blocks with an owner over all blocks. Near 1, requests wait or are preempted.",
            "gauge",
            "percentunit",
            {"pool_use": "in use"},
            width=6,
            max=1,
        ),
        Panel(
            "Requests",
            "vLLM's own count of running and waiting requests.",
            "timeseries",
            "short",
            {"requests_running": "running", "requests_waiting": "waiting"},
        ),
        Panel(
            "KV bytes: held, planned, dense",
            "Held: blocks with an owner. Planned: what the plan gives the running requests while"
            " decoding. Dense: the same tokens with every head full. Held rises above planned"
            " during prefill and falls below it when requests share a prefix.",
            "timeseries",
            "bytes",
            {"used": "held", "planned": "planned", "dense": "dense"},
        ),
        Panel(
            "KV bytes by head class",
            "Bytes held by each head class; pending blocks belong to requests that just ended.",
            "timeseries",
            "bytes",
            {"class_bytes": "{{head_class}}"},
            stacked=True,
        ),
        Panel(
            "Tokens held by a head of each class",
            "Tokens whose K and V one head of the class holds, all requests together. The distance"
            " between the classes is what the policy leaves out.",
            "timeseries",
            "short",
            {"class_tokens": "{{head_class}}"},
        ),
        Panel(
            "KV bytes given back, by reason",
            "window: blocks that left a window, the policy's work. finished: ends of requests."
            " preempted: work that will be done again; should be zero.",
            "timeseries",
            "Bps",
            {"bytes_freed": "{{reason}}"},
        ),
        Panel(
            "Prefix-cache hits, by head class",
            "Bytes taken over from the prefix cache. Windowed classes take over sinks and window"
            " only, so their share falls as prefixes get longer.",
            "timeseries",
            "Bps",
            {"prefix_hit_bytes": "{{head_class}}"},
        ),
        Panel(
            "Preemptions",
            "Requests that vLLM put back to make room.",
            "timeseries",
            "reqps",
            {"preemptions": "preempted"},
        ),
        Panel(
            "Time to first token (TTFT)",
            "From arrival to the first token, vLLM's own histogram.",
            "timeseries",
            "s",
            {"ttft_p50": "median", "ttft_p95": "95th percentile"},
        ),
        Panel(
            "Time per output token (TPOT)",
            "Mean time between tokens of a request, vLLM's own histogram.",
            "timeseries",
            "s",
            {"tpot_p50": "median", "tpot_p95": "95th percentile"},
        ),
        Panel(
            "Tokens per second",
            "Prompt tokens computed or taken from the prefix cache, and tokens generated.",
            "timeseries",
            "short",
            {"prompt_tokens": "prompt", "generation_tokens": "generated"},
        ),
        Panel(
            "What the servers run under",
            "Policy, checksum of the head profile and version. One model should have one profile.",
            "table",
            "none",
            {"info": ""},
        ),
    ),
)

HEADS = Dashboard(
    "headaware-heads",
    "vLLM headaware: heads",
    "Which layer and which KV head holds what. Absent per-head series are counted in the last"
    " panel; the live page at /headaware always shows all heads.",
    (
        Panel(
            "Bytes by layer and KV head, now",
            "One cell per KV head. Heads of a class hold the same; see the plan for the classes.",
            "matrix",
            "bytes",
            {"head_matrix": ""},
            height=16,
        ),
        Panel(
            "Bytes by layer, now",
            "Bytes held by all KV heads of a layer. Layers differ by the classes of their heads.",
            "bargauge",
            "bytes",
            {"layer_bytes": "{{layer}}"},
            height=16,
        ),
        Panel(
            "Bytes of a KV head",
            "The largest, the median and the smallest over all heads.",
            "timeseries",
            "bytes",
            {"head_bytes_max": "largest", "head_bytes_median": "median", "head_bytes_min": "least"},
        ),
        Panel(
            "The ten heads that hold most",
            "Heads of a class hold the same, so these are of one class or two.",
            "bargauge",
            "bytes",
            {"head_most": "layer {{layer}}, head {{kv_head}}, {{head_class}}"},
        ),
        Panel(
            "Tokens kept per head, of finished requests",
            "How many heads kept how many tokens of the requests that finished: windowed heads stay"
            " in the lower bands however long requests get.",
            "heatmap",
            "short",
            {"kept_tokens": "{{le}}"},
        ),
        Panel(
            "Tokens held by layer",
            "Tokens added up over the KV heads of a layer.",
            "timeseries",
            "short",
            {"layer_tokens": "{{layer}}"},
        ),
        Panel(
            "KV heads by class",
            "From the plan; does not change while a server runs.",
            "stat",
            "short",
            {"heads_by_class": "{{head_class}}"},
            width=16,
            height=4,
        ),
        Panel(
            "Per-head series left out",
            "Above 1,024 heads in a server its per-head series are not exported.",
            "stat",
            "short",
            {"series_dropped": "series"},
            width=8,
            height=4,
        ),
    ),
)

CAPACITY = Dashboard(
    "headaware-capacity",
    "vLLM headaware: capacity",
    "How much more fits.",
    (
        Panel(
            "Tokens that still fit",
            "Free bytes over the bytes a token of context costs now. No data while idle.",
            "stat",
            "short",
            {"tokens_that_fit": "tokens"},
            width=8,
        ),
        Panel(
            "Requests that fit",
            "Capacity over the mean bytes of the requests that finished lately.",
            "stat",
            "short",
            {"requests_that_fit": "requests"},
            width=8,
        ),
        Panel(
            "Most of the pool ever in use",
            "In the time range of the dashboard, of the fullest engine.",
            "gauge",
            "percentunit",
            {"pool_use_peak": "peak"},
            width=8,
            max=1,
        ),
        Panel(
            "Pool: held and free",
            "Free blocks include cached prefixes that anybody may overwrite.",
            "timeseries",
            "bytes",
            {"used": "held", "free": "free", "capacity": "capacity"},
        ),
        Panel(
            "Pool in use, by engine",
            "Each engine has a pool of its own; one full engine is enough to make requests wait.",
            "timeseries",
            "percentunit",
            {"pool_use_by_instance": "{{instance}} engine {{engine}}"},
            max=1,
        ),
        Panel(
            "Bytes per token of context",
            "What a token costs now, and what it would cost dense. Falls as requests get longer.",
            "timeseries",
            "bytes",
            {"bytes_per_token": "held", "dense_bytes_per_token": "dense"},
        ),
        Panel(
            "Bytes held over planned",
            "Asked against achieved. Above 1 while prompts are computed, below 1 when prefixes are"
            " shared. Far above 1 for long means prompts come in chunks that are too large.",
            "timeseries",
            "percentunit",
            {"achieved": "held / planned"},
        ),
        Panel(
            "Bytes a request held at its end",
            "Of the requests that finished in the interval, shared blocks included.",
            "timeseries",
            "bytes",
            {
                "request_bytes_p50": "median",
                "request_bytes_p95": "95th percentile",
                "request_bytes_mean": "mean",
            },
        ),
        Panel(
            "Tokens in context",
            "Tokens held by the heads that keep everything; a shared prefix counts once.",
            "timeseries",
            "short",
            {"tokens": "tokens"},
        ),
        Panel(
            "Room for new requests",
            "Bytes that no running request will need before it ends. A request starts only if it"
            " fits in here at its full length.",
            "timeseries",
            "bytes",
            {"unpromised": "promised to nobody", "free": "free now"},
        ),
        Panel(
            "Budget level of new requests",
            "0: windows as planned. It rises when memory runs low and falls when there is room; at"
            " the floor further requests wait. The fullest engine.",
            "timeseries",
            "short",
            {"budget_level": "level", "budget_floor": "floor"},
        ),
        Panel(
            "Windows of new requests",
            "Last tokens that a head of each class keeps at the present level. Running requests"
            " keep what they started with. Classes that keep everything are not shown.",
            "timeseries",
            "short",
            {"budget_windows": "{{head_class}}"},
        ),
        Panel(
            "Changes of the budget level",
            "Levels per second. Both directions at once for long: the pool is at its limit.",
            "timeseries",
            "short",
            {"budget_changes": "{{direction}}"},
        ),
        Panel(
            "Held beyond windows",
            "Bytes that running requests keep only as long as there is room (--kv-elastic all).",
            "timeseries",
            "bytes",
            {"surplus": "surplus"},
        ),
        Panel(
            "Blocks squeezed out of running requests",
            "Per second. surplus: beyond the windows they started with; floor: their windows were"
            " tightened; compacted: heads chose what they keep of a prompt that has been read. And"
            " the steps a second in which squeezing kept a request from being put back.",
            "timeseries",
            "short",
            {"squeezed": "{{reason}}", "preemptions_avoided": "preemptions avoided"},
        ),
        Panel(
            "Answers: expected and real",
            "Tokens per second of answers that ended. Far apart for long: admission has not learned"
            " yet, or lengths vary more than before.",
            "timeseries",
            "short",
            {"answer_tokens": "{{kind}}"},
        ),
        Panel(
            "Tokens per KV head, by the plan",
            "Mean over all heads for a request of the longest length: achieved, and asked for with"
            " --kv-budget (0: windows were asked for).",
            "stat",
            "short",
            {"budget_achieved": "achieved", "budget_asked": "asked"},
            width=24,
            height=4,
        ),
    ),
)

DASHBOARDS = (OVERVIEW, HEADS, CAPACITY)
