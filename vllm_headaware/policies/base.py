"""What a policy is: a name, and one method that says which heads keep what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vllm_headaware.config import KVPolicyConfig
    from vllm_headaware.geometry import ModelGeometry
    from vllm_headaware.profile.format import HeadProfile

AUTO = "auto"
DTYPE_OPTIONS = ("retrieval_dtype", "induction_dtype", "local_dtype")
"""Options that name the KV format of a class."""

HeadScores = Sequence[Sequence[float]]


@dataclass(frozen=True)
class HeadPolicy:
    """What a class of KV heads keeps: the first `sink` tokens and the last `window` tokens.

    `window` None means everything; then `sink` is for requests with a budget of their own. `dtype`
    names the KV format (kernels/formats.py) of what is kept, or is AUTO, the model's own dtype.
    With `heavy`, a number of tokens, blocks beyond it are evicted by score (cache/heavy.py).
    While a prompt is read, a window is at least `prefill_window` tokens wide.
    """

    name: str
    sink: int = 0
    window: int | None = None
    dtype: str = AUTO
    heavy: int | None = None
    prefill_window: int = 0


class KVPolicy(Protocol):
    """A plan maker. To add one, see CONTRIBUTING.md."""

    @property
    def needs_profile(self) -> bool:
        """Whether classify() wants a head profile."""
        ...

    @property
    def options(self) -> tuple[str, ...]:
        """Fields of KVPolicyConfig that classify() reads; others are refused with this policy."""
        ...

    def classify(
        self, config: KVPolicyConfig, geometry: ModelGeometry, profile: HeadProfile | None
    ) -> tuple[tuple[HeadPolicy, ...], list[list[int]], list[list[int]]]:
        """Sort the KV heads into classes.

        Returns:
            The head policies, most generous first; for [layer][KV head] the index of its policy;
            and for [layer][KV head] its rank, 0 = most deserving of more cache, used when spare
            room in a block allows to promote heads.
        """
        ...
