"""A head profile as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.plan import Plan, make_plan
from vllm_headaware.plan.block_sizes import REFERENCE_LENGTHS
from vllm_headaware.plan.dtypes import native_dtypes
from vllm_headaware.plan.geometry import ModelGeometry
from vllm_headaware.profile.format import SCORES, HeadProfile
from vllm_headaware.profile.svg import falling_curve, head_map, loss_curve, shade

FULL_DTYPE = "bfloat16"
"""What the cost of classes is compared with."""
CLASS_COLOURS = {"retrieval": "#fee838", "induction": "#7c7b78", "local": "#00224e"}
MEANING = {
    "gate": "how much an answer depends on what lies beyond sinks and window from the first token"
    " on: this ranks heads where prompts are read under windows",
    "answer": "how long answers kept the head's history, once the prompt was read in full, as heads"
    " were closed: this ranks heads",
    "copy": "how often the head points at the token that is being copied",
    "induction": "attention to what followed the same token before: this picks the wide windows"
    " there",
}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .8rem 0 } caption { text-align: left; color: #555 }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
figure { margin: .8rem 0; overflow-x: auto } figcaption { color: #555 }
svg { display: block } svg text { font: 11px system-ui, sans-serif; fill: #444 }
.line { fill: none; stroke: #00224e } .dot { fill: #00224e }
.area { fill: #00224e; fill-opacity: .2; stroke: #00224e } .mark { stroke: #b08900;
  stroke-dasharray: 4 3 }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 1em }
"""


def html(profile: HeadProfile, config: KVPolicyConfig | None = None) -> str:
    """The page: maps, distributions, agreement, and what each class would cost.

    Args:
        config: options of the headaware policy to cost; the serving defaults when None.
    """
    model = profile.model
    parts = [
        f"<h1>Head profile of {escape(model.name)}</h1>",
        f"<p>{model.num_layers} layers of {model.num_kv_heads} KV heads"
        f" ({model.num_query_heads} query heads), head size {model.head_size}."
        " Point at a cell to read it.</p>",
        *(_score(profile, name) for name in SCORES),
        _agreement(profile),
        _ablation(profile),
        _cost(profile, config or KVPolicyConfig("headaware")),
        _provenance(profile),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Head profile of {escape(model.name)}</title><style>{STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _score(profile: HeadProfile, name: str) -> str:
    rows = profile.scores[name]
    values = [value for row in rows for value in row]
    top = max(values) or 1.0
    best = sorted(values, reverse=True)
    quarter = sum(best[: -(-len(best) // 4)]) / (sum(best) or 1.0)
    # The square root lets small scores be told apart.
    picture = head_map(
        rows, lambda v: shade((v / top) ** 0.5), lambda v: f"{v:.4g}", f"{name} score by head"
    )
    curve = falling_curve(values, [(0.25, f"25 %: {quarter:.0%} of the sum")], f"{name} scores")
    return (
        f"<h2>{name.capitalize()} score</h2><figure>{picture}<figcaption>{MEANING[name]};"
        f" darkest 0, brightest {top:.3g}</figcaption></figure><figure>{curve}</figure>"
    )


def _agreement(profile: HeadProfile) -> str:
    halves = profile.agreement.get("split_half_spearman", {})
    between = profile.agreement.get("between_methods_spearman", {})
    rows = [
        [f"{name}, one half of the samples and the other", f"{v:.2f}"] for name, v in halves.items()
    ]
    rows += [[pair.replace("-", " and "), f"{v:.2f}"] for pair, v in between.items()]
    if not rows:
        return ""
    return "<h2>Agreement</h2>" + _table(
        "Spearman's rank correlation over all KV heads; halves below 0.8 ask for more samples.",
        ["rankings", "correlation"],
        rows,
    )


def _ablation(profile: HeadProfile) -> str:
    found = profile.ablation
    if not found:
        return ""
    picture = loss_curve(found["curve"], found["bound"], "loss by share of open heads")
    return (
        f"<h2>How many heads must keep everything</h2><figure>{picture}<figcaption>NLL of the"
        " answer beyond that of the full model, in nats per token, while only the best heads keep"
        f" everything and the others see sinks and window; mean of {found['samples']} prompts."
        f" {found['share']:.0%} of the heads keep it within {found['bound']:g}.</figcaption>"
        "</figure>"
    )


def _cost(profile: HeadProfile, config: KVPolicyConfig) -> str:
    plan = _plan(profile, config)
    lengths = REFERENCE_LENGTHS
    names = [c.name for c in plan.classes]
    rows = []
    for index, head_class in enumerate(plan.classes):
        policy = head_class.policy
        keeps = "everything"
        if policy.window is not None:
            keeps = f"first {policy.sink:,} and last {policy.window:,}"
        held = [head_class.blocks(n) * plan.block_bytes / 1e6 for n in lengths]
        per_token = head_class.num_heads * plan.token_bytes(index)
        cells = [head_class.name, str(head_class.num_heads), keeps, policy.dtype]
        rows.append([*cells, f"{per_token:,}", *(f"{value:,.1f}" for value in held)])
    total = [f"{plan.request_bytes(n) / 1e6:,.1f}" for n in lengths]
    full = [f"{plan.dense_bytes(n) / 1e6:,.1f}" for n in lengths]
    rows += [["all classes", "", "", "", "", *total], ["full cache", "", "", FULL_DTYPE, "", *full]]
    heads = ["class", "heads", "keeps, in tokens", "stored as", "bytes per token"]
    picture = head_map(
        [[float(index) for index in row] for row in plan.assignment],
        lambda index: CLASS_COLOURS[names[int(index)]],
        lambda index: names[int(index)],
        "class of each head",
    )
    key = "".join(
        f'<span class="key" style="background:{CLASS_COLOURS[n]}"></span>{n}' for n in names
    )
    return (
        "<h2>Classes and what they cost</h2>"
        f"<figure>{picture}<figcaption>{key}</figcaption></figure>"
        + _table(
            f"One decoding request under the options retrieval share {config.retrieval_share:g},"
            f" induction share {config.induction_share:g}; MB (10⁶ bytes), padding included.",
            [*heads, *(f"{n:,} tokens" for n in lengths)],
            rows,
        )
    )


def _plan(profile: HeadProfile, config: KVPolicyConfig) -> Plan:
    model = profile.model
    geometry = ModelGeometry(
        model.num_layers,
        model.num_query_heads,
        model.num_kv_heads,
        model.head_size,
        FULL_DTYPE,
        max(REFERENCE_LENGTHS),
    )
    return make_plan(native_dtypes(config), geometry, profile.scores)


def _provenance(profile: HeadProfile) -> str:
    values = {
        "model hash": profile.model.hash,
        **profile.method,
        **profile.provenance,
        "checksum": profile.checksum,
    }
    return "<h2>Where it comes from</h2>" + _table(
        "", ["what", "value"], [[str(k), str(v)] for k, v in values.items()]
    )


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
