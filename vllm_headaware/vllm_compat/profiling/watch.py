"""What the layers of a served model would put out if heads saw sinks and window only.

While an answer's rows pass through a layer, every KV head's part of the output is computed twice
beside it, from all keys and from those of sinks and window. The difference goes through the layer's
own output projection, and what that adds to the residual stream is the head's score: its share of
the stream's length, mean over the rows. One forward pass tells it of all heads.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention

from vllm_headaware.attention.split import soft_cap_of
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.reference import HeadRule, attention
from vllm_headaware.profile.induction import follower_attention

PROJECTIONS = ("o_proj", "out_proj", "dense", "wo", "c_proj")
"""What model families call the projection that follows attention."""
LAYER = re.compile(r"^(.*?\.(\d+))\.")


class LayerWatch:
    """Looks on at one attention layer of a worker's model, for one request of one step.

    Args:
        attention: vLLM's layer; its forward is wrapped.
        projection: the linear layer that its output goes through.
        decoder: the decoder layer around it, whose input is the residual stream.
    """

    def __init__(self, attention: Attention, projection: nn.Module, decoder: nn.Module) -> None:
        self.attention, self.projection = attention, projection
        self.rows = self.sink = self.window = 0
        self.repeated = 0
        self.stream: torch.Tensor | None = None
        self.scores = torch.zeros(0)
        self._forward = attention.forward
        attention.forward = self._watched  # type: ignore[method-assign]
        decoder.register_forward_pre_hook(self._enters, with_kwargs=True)

    def _enters(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.rows:
            return
        given = [x for x in [*args, *kwargs.values()] if isinstance(x, torch.Tensor)]
        streams = [x for x in given if x.is_floating_point() and x.dim() == 2]
        if not streams or any(x.shape != streams[0].shape for x in streams):
            raise HeadAwareError(
                f"layer {self.attention.layer_name} does not get its residual stream in a way that"
                " --through-engine knows; profile without it"
            )
        # Hidden states and, where norms are fused, what was set aside of them.
        self.stream = functools.reduce(torch.add, (x[-self.rows :].float() for x in streams))

    def _watched(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kw: Any
    ) -> torch.Tensor:
        own = self.attention
        if self.rows or self.repeated:
            q, k, v = (
                rows.detach().reshape(rows.shape[0], heads, own.head_size).float()
                for rows, heads in (
                    (query, own.num_heads),
                    (key, own.num_kv_heads),
                    (value, own.num_kv_heads),
                )
            )
            if self.rows:
                self.scores = self._change(q, k, v)
            else:
                self.scores = follower_attention(
                    q.transpose(0, 1)[None],
                    k.transpose(0, 1)[None],
                    self.repeated,
                    own.impl.scale,
                )
        return self._forward(query, key, value, *args, **kw)

    def _change(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        own, rows, stream = self.attention, self.rows, self.stream
        assert stream is not None, "the decoder layer comes first"
        sinks = getattr(own.impl, "sinks", None)
        terms: dict[str, Any] = {
            "scale": own.impl.scale,
            "soft_cap": soft_cap_of(own),
            "sink_logits": None if sinks is None else sinks.detach().float(),
        }
        heads, ranks = own.num_kv_heads, get_tensor_model_parallel_world_size()
        closed = HeadRule(self.sink, self.window)
        changes = [
            attention(q[-rows:], k, v, [rule] * heads, **terms) for rule in (HeadRule(), closed)
        ]
        change = (changes[0] - changes[1]).view(rows, heads, -1)
        nothing = torch.zeros_like(change)
        start, scores = get_tensor_model_parallel_rank() * heads, torch.zeros(heads * ranks)
        base = self._projected(nothing)  # its bias
        for head in range(heads * ranks):
            alone = nothing.clone()
            if 0 <= head - start < heads:
                alone[:, head - start] = change[:, head - start]
            added = (self._projected(alone) - base).norm(dim=-1)
            scores[head] = (added / stream.norm(dim=-1)).mean().cpu()
        return scores

    def _projected(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, heads, ...] through the output projection, summed over ranks."""
        dtype = next((p.dtype for p in self.projection.parameters() if p.is_floating_point()), None)
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            dtype = torch.get_default_dtype()
        out = self.projection(rows.flatten(1).to(dtype))
        return (out[0] if isinstance(out, tuple) else out).float()


def install(model: nn.Module) -> None:
    """Watch every layer of a worker's model that sees everything.

    Raises:
        HeadAwareError: a layer without a projection that is known.
    """
    watches: dict[int, LayerWatch] = {}
    for name, module in list(model.named_modules()):
        found = LAYER.match(name)
        if not isinstance(module, Attention) or module.sliding_window or not found:
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        projection = next((getattr(parent, p) for p in PROJECTIONS if hasattr(parent, p)), None)
        if projection is None:
            raise HeadAwareError(
                f"no output projection beside {name} is known to --through-engine; profile without"
                " it"
            )
        decoder = model.get_submodule(found.group(1))
        watches[int(found.group(2))] = LayerWatch(module, projection, decoder)
    model._headaware_watches = watches  # type: ignore[assignment]


def expect(model: nn.Module, rows: int, sink: int, window: int, repeated: int) -> None:
    """Say what the next step brings: an answer's rows, its last, or repeated tokens."""
    watches: Any = model._headaware_watches
    for watch in watches.values():
        watch.rows, watch.sink, watch.window, watch.repeated = rows, sink, window, repeated


def taken(model: nn.Module) -> dict[int, torch.Tensor]:
    """By layer, what the last step told: the scores of all KV heads or, of induction, of the
    rank's."""
    watches: Any = model._headaware_watches
    return {layer: watch.scores for layer, watch in watches.items()}
