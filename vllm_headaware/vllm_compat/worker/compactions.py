"""Compactions in the worker: rows move before a step's queries look for them.

Moves come in the order in which blocks changed hands, and before blocks are cleaned for others, so
that each finds what it is to move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vllm_headaware.attention.compaction import compact
from vllm_headaware.attention.split import HeadSplitAttention
from vllm_headaware.cache.compaction import Move
from vllm_headaware.profile.token_weights import unpack
from vllm_headaware.vllm_compat.carrier import MOVES, get_token_scores, plan_of
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook model runner V1; worker/v2.py calls carry_out() itself."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(GPUModelRunner, "execute_model", _execute_model)


def _execute_model(original: Any, self: Any, scheduler_output: Any, *args: Any, **kw: Any) -> Any:
    for name, move in carry_out(self, scheduler_output).items():
        group = move.class_index
        self.requests[name].block_ids[group][:] = move.after
        row = self.input_batch.req_id_to_index.get(name)
        if row is not None:
            self.input_batch.block_table[group].add_row(move.after, row)
    return original(self, scheduler_output, *args, **kw)


@torch.inference_mode()
def carry_out(runner: Any, scheduler_output: Any) -> Mapping[str, Move]:
    """Move the rows of a step's compactions; which requests' block tables are to follow."""
    moves: Mapping[str, Move] = getattr(scheduler_output, MOVES, None) or {}
    if not moves:
        return moves
    plan: Any = plan_of(runner)
    layers = runner.compilation_config.static_forward_context.values()
    splits = [layer for layer in layers if isinstance(layer, HeadSplitAttention)]
    weights = _weights(runner, plan)
    from vllm.distributed import get_tensor_model_parallel_rank

    rank = get_tensor_model_parallel_rank()
    for move in moves.values():
        compact(splits, plan, move, weights, rank)
    return moves


def _weights(runner: Any, plan: Any) -> torch.Tensor:
    if "_headaware_token_weights" not in runner.__dict__:
        geometry = plan.geometry
        shape = geometry.num_layers, geometry.num_kv_heads, geometry.head_size
        weights = unpack(get_token_scores(runner.vllm_config), *shape)
        runner._headaware_token_weights = weights.to(runner.device)
    return runner._headaware_token_weights
