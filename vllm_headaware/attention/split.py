"""The splitter: one attention layer becomes one child layer per head class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.utils.torch_utils import (
    LayerNameType,
    _encode_layer_name,
    _resolve_layer_name,
    direct_register_custom_op,
)
from vllm.v1.attention.backend import AttentionType
from vllm.v1.kv_cache_interface import KVCacheSpec

from vllm_headaware.attention import LIBRARY, OPERATION
from vllm_headaware.attention.kernels import Kernels
from vllm_headaware.cache.specs import make_spec
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan import HeadClass, Plan

ELSE = "no KV policy covers it: use --kv-policy full"


class HeadClassAttention(Attention):
    """The KV heads of one class of one layer: a stock attention layer with its own KV group.

    The head count is part of the layer's name, because vLLM wants equally named layers to be alike
    on all tensor-parallel ranks.
    """

    def __init__(
        self,
        parent: Attention,
        head_class: HeadClass,
        num_kv_heads: int,
        config: VllmConfig,
        kernels: Kernels,
    ) -> None:
        group = parent.num_heads // parent.num_kv_heads
        super().__init__(
            num_heads=num_kv_heads * group,
            head_size=parent.head_size,
            scale=parent.impl.scale,
            num_kv_heads=num_kv_heads,
            cache_config=config.cache_config,
            quant_config=parent.quant_config,
            prefix=f"{parent.layer_name}.{head_class.name}{num_kv_heads}",
            attn_backend=kernels.backend,
        )
        self.head_class = head_class

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        """The class's own spec: its block size, and what it keeps."""
        return make_spec(
            self.head_class,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            vllm_config=vllm_config,
        )


class HeadSplitAttention(nn.Module):
    """Stands where an Attention layer stood and deals its heads to child layers.

    One opaque custom op covers all classes of the layer, so that compilers see the same graph for
    every layer, however its heads are dealt.

    Args:
        parent: the layer it replaces; it is unregistered.
        heads: KV head indices (of this rank) of each class.
        classes: the plan's head classes.
        kernels: what attends; `bound` is theirs to keep what they make of the caches.
        rotary: what rotates keys by position before they come here; None: nothing that is known.
    """

    def __init__(
        self,
        parent: Attention,
        heads: tuple[tuple[int, ...], ...],
        classes: tuple[HeadClass, ...],
        config: VllmConfig,
        kernels: Kernels,
        rotary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._rotary = (rotary,)  # not a part of this module
        self.kernels, self.classes, self.config = kernels, classes, config
        self.scale = parent.impl.scale
        self.soft_cap = soft_cap_of(parent)
        self._sinks = getattr(parent.impl, "sinks", None)
        self.bound: tuple[list[torch.Tensor], Any] | None = None
        self.layer_name = parent.layer_name
        self.layer = extract_layer_index(parent.layer_name)
        self.num_heads = parent.num_heads
        self.num_kv_heads = parent.num_kv_heads
        self.head_size = parent.head_size
        config.compilation_config.static_forward_context[parent.layer_name] = self
        present = [(c, own) for c, own in zip(classes, heads, strict=True) if own]
        self.by_class = nn.ModuleList(
            HeadClassAttention(parent, head_class, len(own), config, kernels)
            for head_class, own in present
        )
        self.heads = [own for _, own in present]
        self.kv_heads = [_pick(own) for _, own in present]
        group = self.num_heads // self.num_kv_heads
        self.query_heads = [
            _pick(tuple(h * group + g for h in own for g in range(group))) for _, own in present
        ]

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output_shape: torch.Size | None = None,
        output_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Attend, each class to its own cache.

        Args:
            query: [num_tokens, num_heads * head_size]
            key, value: [num_tokens, num_kv_heads * head_size]

        Returns:
            [num_tokens, num_heads * head_size], heads in the model's order.
        """
        query = query.view(-1, self.num_heads, self.head_size)
        output = torch.empty(query.shape, dtype=output_dtype or query.dtype, device=query.device)
        torch.ops.vllm_headaware.split_attention(
            query,
            key.view(-1, self.num_kv_heads, self.head_size),
            value.view(-1, self.num_kv_heads, self.head_size),
            output,
            _encode_layer_name(self.layer_name),
        )
        return output.flatten(1)

    def sink_logits(self) -> torch.Tensor | None:
        """A logit of each query head that no value belongs to: float32 [num_heads], as loaded."""
        return None if self._sinks is None else self._sinks.detach().float().contiguous()

    def rotation(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What keys were rotated by: cos and sin, float32 [num_tokens, half of the channels that
        are]."""
        rotary: Any = self._rotary[0]
        cos, sin = rotary.cos_sin_cache[:num_tokens].float().chunk(2, -1)
        return cos, sin

    def bound_to_caches(self, bind: Callable[[], Any]) -> Any:
        """What bind() makes of the blocks of the classes; made anew if vLLM gives them others."""
        children: Any = self.by_class
        caches = [child.kv_cache for child in children]
        if self.bound is None or any(
            a is not b for a, b in zip(caches, self.bound[0], strict=True)
        ):
            self.bound = (caches, bind())
        return self.bound[1]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Write K and V of each class into its blocks and attend; fills output.

        Args:
            query, output: [num_tokens, num_heads, head_size]
            key, value: [num_tokens, num_kv_heads, head_size]
        """
        self.kernels.attend(self, query, key, value, output)


def _pick(heads: tuple[int, ...]) -> slice | list[int]:
    """An index for a set of heads: a slice, which copies nothing, where they are neighbours."""
    first, last = heads[0], heads[-1]
    return slice(first, last + 1) if last - first + 1 == len(heads) else list(heads)


def _split_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    layer_name: LayerNameType,
) -> None:
    layers = get_forward_context().no_compile_layers
    layers[_resolve_layer_name(layer_name)].attend(query, key, value, output)


def _split_attention_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    layer_name: LayerNameType,
) -> None:
    return None


_library = torch.library.Library(LIBRARY, "FRAGMENT")
direct_register_custom_op(
    op_name=OPERATION,
    op_func=_split_attention,
    mutates_args=["output"],
    fake_impl=_split_attention_fake,
    target_lib=_library,
)


def split_model(
    model: nn.Module, config: VllmConfig, plan: Plan, rank: int, kernels: Kernels
) -> None:
    """Replace every decoder attention layer of a freshly built model, before weights are loaded.

    Raises:
        HeadAwareError: a layer that cannot be split, or layers the plan does not cover.
    """
    found = 0
    for name, module in list(model.named_modules()):
        if not isinstance(module, Attention) or isinstance(module, HeadClassAttention):
            continue
        index = extract_layer_index(module.layer_name)
        if index >= plan.geometry.num_layers:
            raise HeadAwareError(
                f"attention layer {module.layer_name} is not one of the"
                f" {plan.geometry.num_layers} that the plan covers; {ELSE}"
            )
        own_window = plan.geometry.window_of(index)
        _require_splittable(module, own_window, plan.geometry.head_size, kernels)
        parent_name, _, attribute = name.rpartition(".")
        rotary = getattr(model.get_submodule(parent_name), "rotary_emb", None)
        if any(c.policy.keep < 1 for c in plan.classes):
            _require_compactable(module, rotary, kernels)
        split = HeadSplitAttention(
            module, plan.heads(index, rank), plan.classes, config, kernels, rotary
        )
        setattr(model.get_submodule(parent_name), attribute, split)
        kernels.reserve(split)
        found += 1
    if found != plan.geometry.num_layers:
        raise HeadAwareError(
            f"the plan covers {plan.geometry.num_layers} attention layers, the model has {found}"
            f" that can be split; {ELSE}"
        )


def _require_compactable(layer: Attention, rotary: Any, kernels: Kernels) -> None:
    reasons = {
        "is served by vLLM's own op, which cannot move tokens": kernels.rows is None,
        "is rotated by position in a way that token scores do not know": (
            getattr(rotary, "cos_sin_cache", None) is None
            or not getattr(rotary, "is_neox_style", False)
            or getattr(rotary, "mrope_section", None) is not None
        ),
    }
    _refuse(layer, reasons, "remove --kv-retrieval-keep")


def soft_cap_of(layer: Attention) -> float:
    """What a layer's logits are capped at; 0: they are not."""
    return float(getattr(layer.impl, "logits_soft_cap", None) or 0.0)


def _require_splittable(
    layer: Attention, own_window: int | None, head_size: int, kernels: Kernels
) -> None:
    window = layer.sliding_window
    reasons = {
        f"is a {type(layer).__name__}": type(layer) is not Attention,
        "is not decoder self-attention": layer.attn_type != AttentionType.DECODER,
        f"has a sliding window of {window} tokens, where the model's config says"
        f" {own_window or 'none'}": window != own_window,
        "uses ALiBi": getattr(layer.impl, "alibi_slopes", None) is not None,
        "shares the KV cache of another layer": layer.kv_sharing_target_layer_name is not None,
        f"has heads of {layer.head_size} elements, not {head_size}": layer.head_size != head_size,
        "has values of another size than keys": layer.head_size_v != layer.head_size,
    }
    if not kernels.terms:
        needs = "that only kernels of ours know, and these cannot run here"
        reasons |= {
            f"has a sliding window of its own, {needs}": window is not None,
            f"has attention sink weights, {needs}": layer.has_sink,
            f"caps its logits, {needs}": soft_cap_of(layer) > 0,
        }
    _refuse(layer, reasons, ELSE)


def _refuse(layer: Attention, reasons: dict[str, bool], do: str) -> None:
    """Say the first reason that holds, and what to do."""
    for reason, holds in reasons.items():
        if holds:
            raise HeadAwareError(f"attention layer {layer.layer_name} {reason}; {do}")
