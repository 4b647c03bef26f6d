"""What one request may ask for: `vllm_xargs` with kv_budget, kv_policy and kv_level.

    {"vllm_xargs": {"kv_budget": 2048}}       this many tokens per KV head instead of the server's
    {"vllm_xargs": {"kv_policy": "full"}}     every head keeps everything of this request
    {"vllm_xargs": {"kv_level": 0}}           this level of the ladder, whatever the pressure

The operator's RequestLimits bound them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_headaware.errors import HeadAwareError

OPTIONS = ("kv_budget", "kv_policy", "kv_level")
FOREIGN = ("kv_transfer_params", "kv_cache_report_mode")
"""Extra arguments of vLLM's own that start like ours."""


@dataclass(frozen=True)
class RequestLimits:
    """What the operator allows requests to ask for.

    Attributes:
        floor: share (0 to 1) of each window that stays under pressure; 1 = never tighten.
        budget_min, budget_max: bounds of kv_budget in tokens; a maximum of 0 is none.
        full: whether kv_policy "full" is allowed.
        reserve: whether a request starts only where all of max_tokens fits.
        elastic: whether requests keep everything while there is room.
    """

    floor: float = 0.5
    budget_min: int = 0
    budget_max: int = 0
    full: bool = True
    reserve: bool = False
    elastic: bool = False


@dataclass(frozen=True)
class RequestOptions:
    """What one request asked for; see the module."""

    budget: int | None = None
    full: bool = False
    level: int | None = None


def read_options(extra_args: Mapping[str, Any] | None, policy: str) -> RequestOptions:
    """Take our options out of a request's extra arguments; others' are let be.

    Args:
        policy: the server's own; naming it is asking for nothing.

    Raises:
        HeadAwareError: an unknown name that starts with kv_, or a value of the wrong type.
    """
    given = {k: v for k, v in (extra_args or {}).items() if k.startswith("kv_")}
    for name in given:
        if name not in (*OPTIONS, *FOREIGN):
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise HeadAwareError(f"{name} is not a KV option{hint}; known: {', '.join(OPTIONS)}")
    asked = given.get("kv_policy", policy)
    if asked not in ("full", policy):
        raise HeadAwareError(f"kv_policy must be 'full' or the server's {policy!r}, got {asked!r}")
    for name, least in (("kv_budget", 1), ("kv_level", 0)):
        value = given.get(name)
        if value is not None and (type(value) is not int or value < least):
            raise HeadAwareError(f"{name} must be a whole number, at least {least}, got {value!r}")
    full = asked == "full" != policy
    if full and "kv_budget" in given:
        raise HeadAwareError("kv_policy 'full' and kv_budget exclude each other; give one of them")
    return RequestOptions(given.get("kv_budget"), full, given.get("kv_level"))
