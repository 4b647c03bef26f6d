"""The KV policy of one server: every option, checked."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vllm_headaware.config.names import (
    ADMISSIONS,
    AUTO,
    DTYPE_OPTIONS,
    ELASTICS,
    POLICY_OPTIONS,
    PRESSURE,
)
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.formats import FORMATS

WHOLE_NUMBERS = {
    "sink": 0,
    "window": 1,
    "induction_window": 1,
    "prefill_window": 0,
    "retrieval_recent": 1,
    "budget": 0,
    "request_budget_min": 0,
    "request_budget_max": 0,
}
"""Fields that count tokens, and the least each may be."""
ABOVE_0 = {
    "floor": "the share of a window that stays under pressure",
    "retrieval_keep": "the share of a prompt's tokens that retrieval heads keep",
}
"""Fields that are a share and never nothing."""
MOST_TOKENS = 2**30
"""No field may count more."""


@dataclass(frozen=True)
class KVPolicyConfig:
    """The KV policy of one server, before a model is known.

    Shares are fractions of all KV heads of the model; sinks and windows are in tokens and are
    rounded outward to whole blocks, never inward. A dtype is a KV format by name or "auto": k8v4
    where the native kernels can run, else the model's own; for layers that have a sliding window of
    their own, as local heads. `retrieval_keep` is the share of a prompt's tokens that retrieval
    heads keep once it has been read, its latest `retrieval_recent` in any case. While a prompt is
    read, windows are at least `prefill_window` wide; "auto": as wide as the pool can hold when the
    request starts. `budget` is the mean number of tokens that a KV head keeps of a request; 0
    leaves the windows as they are named. `floor` is the share of each window that stays under
    pressure; `elastic` is when requests may keep more than their windows: while the prompt is read,
    as long as there is room, or never; `admission` is whether requests start by what their answers
    are expected to take, or by all they may; request_* bound what single requests may ask for.

    Raises:
        HeadAwareError: a value is of the wrong type or out of range.
    """

    policy: str = "full"
    head_profile: str = "auto"
    retrieval_share: float = 0.3
    retrieval_keep: float = 1.0
    retrieval_recent: int = 512
    induction_share: float = 0.125
    sink: int = 64
    window: int = 1024
    induction_window: int = 2048
    prefill_window: int | str = AUTO
    retrieval_dtype: str = AUTO
    induction_dtype: str = AUTO
    local_dtype: str = AUTO
    own_window_dtype: str = AUTO
    budget: int = 0
    floor: float = 0.5
    elastic: str = "prompt"
    admission: str = "predict"
    request_budget_min: int = 0
    request_budget_max: int = 0
    request_full: str = "allow"

    def __post_init__(self) -> None:
        if not isinstance(self.policy, str) or self.policy not in POLICY_OPTIONS:
            raise HeadAwareError(
                f"kv policy {self.policy!r} does not exist; choose one of"
                f" {', '.join(POLICY_OPTIONS)}{nearest(str(self.policy), POLICY_OPTIONS)}"
            )
        if not isinstance(self.head_profile, str) or not self.head_profile:
            raise HeadAwareError(
                f"kv head_profile must be a path or 'auto', got {self.head_profile!r}"
            )
        for name in ("retrieval_share", "induction_share"):
            value = getattr(self, name)
            if not _is_number(value) or not math.isfinite(value) or not 0 <= value <= 1:
                raise HeadAwareError(
                    f"kv {name} must be a number from 0 to 1 (a share of all KV heads),"
                    f" got {value!r}"
                )
        for name, least in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if name == "prefill_window" and value == AUTO:
                continue
            if type(value) is not int or not least <= value <= MOST_TOKENS:
                raise HeadAwareError(
                    f"kv {name} must be {'auto or ' if name == 'prefill_window' else ''}a whole"
                    f" number of tokens, at least {least} and at most {MOST_TOKENS}, got {value!r}"
                )
        for name, what in ABOVE_0.items():
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value <= 1:
                raise HeadAwareError(
                    f"kv {name} must be a number above 0 and up to 1 ({what}), got {value!r}"
                )
        for name, known in (("admission", ADMISSIONS), ("elastic", ELASTICS)):
            value = getattr(self, name)
            if value not in known:
                raise HeadAwareError(
                    f"kv {name} must be one of {', '.join(known)}, got {value!r}"
                    f"{nearest(str(value), known)}"
                )
        if self.request_full not in ("allow", "refuse"):
            raise HeadAwareError(
                f"kv request_full must be 'allow' or 'refuse', got {self.request_full!r}"
            )
        if 0 < self.request_budget_max < self.request_budget_min:
            raise HeadAwareError(
                f"kv request_budget_max ({self.request_budget_max}) is less than"
                f" request_budget_min ({self.request_budget_min})"
            )
        for name in DTYPE_OPTIONS:
            value = getattr(self, name)
            if value not in (AUTO, *FORMATS):
                raise HeadAwareError(
                    f"kv {name} must be one of {', '.join((AUTO, *FORMATS))}, got {value!r}"
                    f"{nearest(str(value), FORMATS)}"
                )
        if "induction_window" in self.options and self.induction_window < self.window:
            raise HeadAwareError(
                f"kv induction_window ({self.induction_window}) is narrower than window"
                f" ({self.window}); induction heads need at least what local heads keep"
            )

    @property
    def options(self) -> tuple[str, ...]:
        """Fields that can be set with the policy."""
        own = POLICY_OPTIONS[self.policy]
        return (*own, *PRESSURE) if self.active else own

    @property
    def reading(self) -> int | None:
        """What windows are at least while a prompt is read, in tokens; None: everything, where
        there is room."""
        if not isinstance(self.prefill_window, str):
            return self.prefill_window
        return 0 if self.elastic == "off" else None

    @property
    def active(self) -> bool:
        """False for `full`, which leaves vLLM untouched."""
        return self.policy != "full"


FIELDS = tuple(field.name for field in dataclasses.fields(KVPolicyConfig))


def tokens_or_auto(text: str) -> int | str:
    """A number of tokens, or AUTO."""
    return text if text == AUTO else int(text)


PARSERS: dict[str, Callable[[str], Any]] = {
    **{field.name: type(field.default) for field in dataclasses.fields(KVPolicyConfig)},
    "prefill_window": tokens_or_auto,
}
"""What makes a field's value of text, by field."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that was probably meant; empty where none is near."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
