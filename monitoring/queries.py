"""Every PromQL expression of the dashboards, by name. `{}` stands for the selector's labels.

Only PromQL that Prometheus 2.x and 3.x both know. Ratios have a divisor filtered to > 0, so that an
idle server shows no data rather than NaN.
"""

from __future__ import annotations

SELECTOR = 'model_name=~"$model_name",engine=~"$engine",instance=~"$instance"'
RATE = "[$__rate_interval]"


def _sum(metric: str, by: str = "", extra: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}(vllm_headaware_{metric}{{{extra}{SELECTOR}}})"


def _rate(metric: str, by: str = "", prefix: str = "vllm_headaware_") -> str:
    by = f" by ({by}) " if by else ""
    return f"sum{by}(rate({prefix}{metric}{{{SELECTOR}}}{RATE}))"


def _quantile(q: float, metric: str, prefix: str = "vllm_headaware_") -> str:
    return f"histogram_quantile({q}, {_rate(metric + '_bucket', 'le', prefix)})"


HEADS_PER_CLASS = (
    f"max by (model_name, engine, instance, head_class) (vllm_headaware_class_heads{{{SELECTOR}}})"
)

QUERIES = {
    # What is held
    "used": _sum("kv_used_bytes"),
    "dense": _sum("kv_dense_equivalent_bytes"),
    "planned": _sum("kv_planned_bytes"),
    "capacity": _sum("kv_capacity_bytes"),
    "free": _sum("kv_free_bytes"),
    "saving": f"1 - {_sum('kv_used_bytes')} / ({_sum('kv_dense_equivalent_bytes')} > 0)",
    "achieved": f"{_sum('kv_used_bytes')} / ({_sum('kv_planned_bytes')} > 0)",
    "pool_use": f"{_sum('kv_used_bytes')} / ({_sum('kv_capacity_bytes')} > 0)",
    "pool_use_by_instance": (
        f"{_sum('kv_used_bytes', 'instance, engine')}"
        f" / ({_sum('kv_capacity_bytes', 'instance, engine')} > 0)"
    ),
    "pool_use_peak": (
        f"max(max_over_time(vllm_headaware_kv_used_bytes{{{SELECTOR}}}[$__range])"
        f" / (vllm_headaware_kv_capacity_bytes{{{SELECTOR}}} > 0))"
    ),
    "class_bytes": _sum("kv_class_bytes", "head_class"),
    "class_tokens": _sum("kv_class_tokens", "head_class", 'head_class!="pending",'),
    "info": f"max by (model_name, policy, profile, version) (vllm_headaware_info{{{SELECTOR}}})",
    # What happens
    "bytes_freed": _rate("bytes_freed_total", "reason"),
    "prefix_hit_bytes": _rate("prefix_hit_bytes_total", "head_class"),
    "requests_running": f"sum(vllm:num_requests_running{{{SELECTOR}}})",
    "requests_waiting": f"sum(vllm:num_requests_waiting{{{SELECTOR}}})",
    "preemptions": _rate("num_preemptions_total", prefix="vllm:"),
    "prompt_tokens": _rate("prompt_tokens_total", prefix="vllm:"),
    "generation_tokens": _rate("generation_tokens_total", prefix="vllm:"),
    "ttft_p50": _quantile(0.5, "time_to_first_token_seconds", "vllm:"),
    "ttft_p95": _quantile(0.95, "time_to_first_token_seconds", "vllm:"),
    "tpot_p50": _quantile(0.5, "request_time_per_output_token_seconds", "vllm:"),
    "tpot_p95": _quantile(0.95, "request_time_per_output_token_seconds", "vllm:"),
    # Heads
    "head_matrix": _sum("kv_head_bytes", "layer, kv_head"),
    "head_most": f"topk(10, {_sum('kv_head_bytes', 'layer, kv_head, head_class')})",
    "head_bytes_max": f"max({_sum('kv_head_bytes', 'layer, kv_head')})",
    "head_bytes_median": f"quantile(0.5, {_sum('kv_head_bytes', 'layer, kv_head')})",
    "head_bytes_min": f"min({_sum('kv_head_bytes', 'layer, kv_head')})",
    "layer_bytes": _sum("kv_layer_bytes", "layer"),
    "layer_tokens": _sum("kv_layer_tokens", "layer"),
    "heads_by_class": f"max by (head_class) (vllm_headaware_class_heads{{{SELECTOR}}})",
    "kept_tokens": (
        "sum by (le) (sum by (le, model_name, engine, instance, head_class)"
        f" (increase(vllm_headaware_head_kept_tokens_bucket{{{SELECTOR}}}{RATE}))"
        " * on (model_name, engine, instance, head_class) group_left "
        f"{HEADS_PER_CLASS})"
    ),
    "series_dropped": _sum("head_series_dropped"),
    # Capacity
    "bytes_per_token": f"{_sum('kv_used_bytes')} / ({_sum('kv_tokens')} > 0)",
    "dense_bytes_per_token": f"{_sum('kv_dense_equivalent_bytes')} / ({_sum('kv_tokens')} > 0)",
    "tokens_that_fit": (
        f"{_sum('kv_free_bytes')} / ({_sum('kv_used_bytes')} / ({_sum('kv_tokens')} > 0))"
    ),
    "tokens": _sum("kv_tokens"),
    # Budgets
    "unpromised": _sum("kv_unpromised_bytes"),
    "budget_level": f"max(vllm_headaware_budget_level{{{SELECTOR}}})",
    "budget_floor": f"max(vllm_headaware_budget_level_max{{{SELECTOR}}})",
    "budget_windows": (f"min by (head_class) (vllm_headaware_budget_window_tokens{{{SELECTOR}}})"),
    "budget_changes": _rate("budget_changes_total", "direction"),
    "surplus": _sum("kv_surplus_bytes"),
    "squeezed": _rate("blocks_squeezed_total", "reason"),
    "preemptions_avoided": _rate("preemptions_avoided_total"),
    "answer_tokens": _rate("answer_tokens_total", "kind"),
    "budget_achieved": f"max(vllm_headaware_budget_achieved_tokens{{{SELECTOR}}})",
    "budget_asked": f"max(vllm_headaware_budget_asked_tokens{{{SELECTOR}}})",
    "request_bytes_p50": _quantile(0.5, "request_kv_bytes"),
    "request_bytes_p95": _quantile(0.95, "request_kv_bytes"),
    "request_bytes_mean": (
        f"{_rate('request_kv_bytes_sum')} / ({_rate('request_kv_bytes_count')} > 0)"
    ),
    "requests_that_fit": (
        f"{_sum('kv_capacity_bytes')}"
        f" / ({_rate('request_kv_bytes_sum')} / ({_rate('request_kv_bytes_count')} > 0))"
    ),
}


def outside_grafana(expression: str, rate_interval: str = "30s", time_range: str = "5m") -> str:
    """The expression with Grafana's variables replaced, as Prometheus takes it."""
    for variable, text in {
        "$__rate_interval": rate_interval,
        "$__range": time_range,
        "$model_name": ".*",
        "$engine": ".*",
        "$instance": ".*",
    }.items():
        expression = expression.replace(variable, text)
    return expression
