"""What a policy is: a name, and one method that says which heads keep what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_headaware.config.kv_policy import KVPolicyConfig
from vllm_headaware.config.names import AUTO

HeadScores = Sequence[Sequence[float]]
"""A score of every `[layer][KV head]`."""


@dataclass(frozen=True)
class HeadPolicy:
    """What a class of KV heads keeps: the first `sink` tokens and the last `window` tokens.

    `window` None means everything; then `sink` is for requests with a budget of their own. `dtype`
    names the KV format (kernels/formats.py) of what is kept, or is AUTO, the model's own dtype.
    With `heavy_hitters`, a number of tokens, blocks beyond it are evicted by score
    (cache/heavy_hitters.py). While a prompt is read, a window is at least `prefill_window` tokens
    wide; None: as wide as the pool can hold, in full if it can. An `exact` window is the model's
    own: nothing rounds, widens or tightens it. Of a prompt that has been read, heads without a
    window may `keep` a share of the tokens only, each head its own, but all of the `recent` ones.
    """

    name: str
    sink: int = 0
    window: int | None = None
    dtype: str = AUTO
    heavy_hitters: int | None = None
    prefill_window: int | None = 0
    exact: bool = False
    keep: float = 1.0
    recent: int = 0


Classified = tuple[tuple[HeadPolicy, ...], list[list[int]], list[list[int]]]
"""Head policies, most generous first; for `[layer][KV head]` the index of its policy; and likewise
its rank, 0 = most deserving of more cache, used when spare room in a block allows to promote heads.
"""


class KVPolicy(Protocol):
    """A plan maker. To add one, see CONTRIBUTING.md."""

    @property
    def needs_profile(self) -> bool:
        """Whether classify() wants scores."""
        ...

    def classify(
        self,
        config: KVPolicyConfig,
        shape: tuple[int, int],
        scores: Mapping[str, HeadScores] | None,
    ) -> Classified:
        """Sort the KV heads into classes.

        Args:
            shape: layers, and KV heads of a layer.
            scores: of a head profile, by name.
        """
        ...


def one_class(shape: tuple[int, int]) -> list[list[int]]:
    """Class 0, or rank 0, for every `[layer][KV head]`."""
    return [[0] * shape[1] for _ in range(shape[0])]
