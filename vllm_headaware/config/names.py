"""Names of policies and their options, as data: what flags, policy files and plans agree on."""

from __future__ import annotations

AUTO = "auto"
"""A KV dtype that is chosen for the machine: int8 where kernels have it, else the model's own. A
prefill window that is as wide as the pool can hold."""
DTYPE_OPTIONS = ("retrieval_dtype", "induction_dtype", "local_dtype", "own_window_dtype")
"""Options that name the KV format of a class."""

POLICY_OPTIONS: dict[str, tuple[str, ...]] = {
    "full": (),
    "headaware": (
        *("head_profile", "retrieval_share", "induction_share"),
        *("retrieval_keep", "retrieval_recent"),
        *("sink", "window", "induction_window", "prefill_window", "budget"),
        *DTYPE_OPTIONS,
    ),
    "streamingllm": (
        *("sink", "window", "prefill_window", "budget", "local_dtype", "own_window_dtype"),
    ),
    "h2o": ("sink", "budget", "local_dtype"),
}
"""Every value of --kv-policy, and the fields of KVPolicyConfig that it reads."""
PRESSURE = (
    *("floor", "elastic", "admission"),
    *("request_budget_min", "request_budget_max", "request_full"),
)
"""Fields that every policy but `full` has: what happens under load, and to single requests."""
ADMISSIONS = ("predict", "reserve")
"""Values of --kv-admission."""
ELASTICS = ("prompt", "all", "off")
"""Values of --kv-elastic."""
DEALT_BY_BUDGET = ("window", "induction_window")
"""Fields that a budget takes the place of."""
