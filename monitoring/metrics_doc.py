"""docs/metrics.md from the table of families."""

from __future__ import annotations

from vllm_headaware.observability.metric_families import COMMON, FAMILIES, MAX_HEAD_SERIES, Family

HEAD = f"""\
# Metrics

Generated from `vllm_headaware/observability/metric_families.py` by `make dashboards`; do not edit.

On vLLM's own `/metrics`, beside its `vllm:` families. Every family has the labels
{" and ".join(f"`{label}`" for label in COMMON)}; the table names the others.

Bytes are blocks really held times bytes per block, over all tensor-parallel ranks, padding
included. Heads sum up to layers and to classes; classes, with `pending`, sum up to `kv_used_bytes`.
`kv_head` is the head's index in the whole model, whatever rank computes it. Gauges are counted at
most twice a second while an engine works and at once when it falls idle;
`census_timestamp_seconds` says when.
Blocks and tokens of a single head are those of its class, which its `head_class` label names.

| metric | type | labels | meaning |
|---|---|---|---|
"""
TAIL = f"""
Values of `head_class`: the classes of the plan (retrieval, induction, local), and in the gauges
`pending`: blocks whose request is gone but whose last step is still in flight.
Values of `reason`: window, finished, preempted. `profile` is the start of the head profile's
checksum. Histograms add `_bucket`, `_sum` and `_count`.

## Several engines and front ends

With `--data-parallel-size` each engine has its own series (label `engine`). With
`--api-server-count` a census reaches one front end: gauges show the most recent one, counters and
histograms carry differences and are added up over front ends, so each event counts once.

## Cardinality

Per-head families are exported while layers x KV heads x engines of a server stay within
{MAX_HEAD_SERIES:,}: 30 x 3 = 90 for SmolLM2-135M, 32 x 8 = 256 for an 8B model, 80 x 8 = 640 for a
70B. Above that they are left out as a whole, `head_series_dropped` says how many series
that is, and layers, classes and the live page remain. To drop them earlier, in Prometheus:

    metric_relabel_configs:
      - source_labels: [__name__]
        regex: vllm_headaware_kv_head_(bytes|tokens)
        action: drop

A filter that keeps `vllm:.*` only, as some charts have, drops all of these metrics; keep
`vllm(:|_headaware_).*`.
"""


def metrics_markdown() -> str:
    """The whole page."""
    return HEAD + "".join(map(_row, FAMILIES)) + TAIL


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.full_name}` | {family.kind} | {labels} | {family.text} |\n"
