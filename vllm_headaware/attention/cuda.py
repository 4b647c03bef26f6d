"""Split layers on the Triton kernels: what GPUs run, and on CPUs Triton's interpreter.

Metadata builders only collect where things are; the first layer of a step lists the work, which all
layers read. Nothing waits for the device, so CUDA graphs capture all of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from vllm_headaware.attention.slots import slots
from vllm_headaware.attention.split import HeadSplitAttention
from vllm_headaware.kernels.triton.attention import ClassCache, LayerAttention
from vllm_headaware.kernels.triton.support import GRANULE, HEAD_SIZES
from vllm_headaware.kernels.triton.workspace import ClassStep, StepWork, Workspace
from vllm_headaware.plan import HeadClass


class Step:
    """A step of all head classes, filled by their builders and read by all layers.

    Attributes:
        classes: by name, what vLLM says of the class's group.
        max_queries: most queries of a request.
    """

    def __init__(self, starts: torch.Tensor, max_queries: int) -> None:
        self.starts, self.max_queries = starts, max_queries
        self.classes: dict[str, CommonAttentionMetadata] = {}
        self.work: StepWork | None = None

    def belongs(self, name: str, common: CommonAttentionMetadata) -> bool:
        """Whether a group's metadata is of this step: groups of a step share their starts."""
        known = self.classes.get(name)
        return self.starts is common.query_start_loc and (known is None or known is common)

    def listed(
        self, layer: LayerAttention, room: Workspace, classes: tuple[HeadClass, ...]
    ) -> StepWork:
        """The work of the step; the first layer that asks has it listed."""
        if self.work is None:
            steps = self._by_class(classes)
            self.work = self._list(layer, room, steps, self.max_queries)
        return self.work

    def emptied(
        self, layer: LayerAttention, room: Workspace, classes: tuple[HeadClass, ...]
    ) -> StepWork:
        """A step like this one that reads prompts and answers of no tokens."""
        steps = self._by_class(classes)
        starts = torch.zeros_like(steps[0].query_start)
        steps = [
            replace(s, query_start=starts, seq_lens=torch.zeros_like(s.seq_lens)) for s in steps
        ]
        return self._list(layer, room, steps, max_queries=2)

    def _by_class(self, classes: tuple[HeadClass, ...]) -> list[ClassStep]:
        held = slots()
        return [
            ClassStep(
                query_start=common.query_start_loc,
                seq_lens=common.seq_lens,
                block_table=common.block_table_tensor,
                windows=held.windows[index],
                reading_windows=held.reading[index],
            )
            for index, common in enumerate(self.classes[c.name] for c in classes)
        ]

    @staticmethod
    def _list(
        layer: LayerAttention, room: Workspace, steps: list[ClassStep], max_queries: int
    ) -> StepWork:
        held = slots()
        return StepWork(
            room,
            layer.shape,
            layer.layout,
            steps,
            prompt_lens=held.prompts,
            slots=held.order,
            max_queries=max_queries,
        )


class TritonMetadataBuilder(AttentionMetadataBuilder[Step]):
    """Adds a class to the step that its builders and those of the other classes share."""

    _cudagraph_support = AttentionCGSupport.ALWAYS
    _step: Step | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Step:
        """The step, with this builder's class in it."""
        spec: Any = self.kv_cache_spec
        common, step = common_attn_metadata, TritonMetadataBuilder._step
        if step is None or not step.belongs(spec.head_class, common):
            step = Step(common.query_start_loc, common.max_query_len)
            TritonMetadataBuilder._step = step
        step.classes[spec.head_class] = common
        return step


class TritonImpl(AttentionImpl[Any]):
    """Holds what Attention gives its implementation; attention itself goes through attend()."""

    def __init__(
        self, num_heads: int, head_size: int, scale: float, *args: Any, **kwargs: Any
    ) -> None:
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Never called: HeadSplitAttention attends for all its classes."""
        raise NotImplementedError("head classes attend through HeadSplitAttention")


class TritonBackend(AttentionBackend):
    """What vLLM needs to know to allocate the blocks."""

    supported_dtypes = [torch.float32, torch.bfloat16, torch.float16]  # noqa: RUF012

    @staticmethod
    def get_name() -> str:
        """vLLM's word for backends that are not its own."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        return TritonImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        return TritonMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(GRANULE)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return list(HEAD_SIZES)

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Block outermost: what lets classes of different width share one pool."""
        return (KVCacheLayout.BLHNC,)


_rooms: dict[tuple[Any, ...], Workspace] = {}


def reserve(split: HeadSplitAttention) -> Workspace:
    """Room for the steps of a model, made with its first layer, before vLLM measures what is left
    for blocks."""
    config, classes = split.config, split.classes
    device: Any = config.device_config.device
    device = torch.device(device)
    key = (split.num_heads, split.num_kv_heads, split.head_size, len(classes), str(device))
    if key not in _rooms:
        scheduler = config.scheduler_config
        _rooms[key] = Workspace(
            # Padding of CUDA graphs may go beyond what is scheduled.
            max_requests=max(scheduler.max_num_seqs, _largest_graph(config)),
            max_tokens=max(scheduler.max_num_batched_tokens, _largest_graph(config)),
            max_length=config.model_config.max_model_len,
            num_query_heads=split.num_heads,
            num_kv_heads=split.num_kv_heads,
            head_size=split.head_size,
            num_classes=len(classes),
            device=device,
        )
    return _rooms[key]


def _largest_graph(config: Any) -> int:
    return config.compilation_config.max_cudagraph_capture_size or 0


def attend(
    split: HeadSplitAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """Attend all classes; see HeadSplitAttention.attend."""
    metadata: Any = get_forward_context().attn_metadata
    if metadata is None:  # a profiling run: nothing to read or write yet
        return
    children: Any = split.by_class
    layer: LayerAttention
    layer, room = split.bound_to_caches(lambda: (_bind(split, query.dtype), reserve(split)))
    step: Step = metadata[children[0].layer_name]
    if not room.compiled:
        # The first step is vLLM's own, without prompts: nobody's prompt has to wait for a compiler.
        layer(query[:1], key[:1], value[:1], output[:1], step.emptied(layer, room, split.classes))
        room.compiled = True
    layer(query, key, value, output, step.listed(layer, room, split.classes))


def _bind(split: HeadSplitAttention, io_dtype: torch.dtype) -> LayerAttention:
    """The launches of a layer, once vLLM has given its classes their blocks."""
    children: Any = split.by_class
    by_name = {
        child.head_class.name: (child.kv_cache, heads)
        for child, heads in zip(children, split.heads, strict=True)
    }
    return LayerAttention(
        num_query_heads=split.num_heads,
        num_kv_heads=split.num_kv_heads,
        head_size=split.head_size,
        scale=split.scale,
        io_dtype=io_dtype,
        soft_cap=split.soft_cap,
        sink_logits=split.sink_logits(),
        classes=[
            ClassCache(
                *by_name.get(c.name, (None, ())),
                format=c.policy.dtype,
                block_tokens=c.block_tokens,
                sink=c.sink_blocks * c.block_tokens,
                exact=c.policy.exact,
            )
            for c in split.classes
        ],
    )
