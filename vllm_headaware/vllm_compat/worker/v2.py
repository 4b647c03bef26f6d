"""Requests of model runner V2, the default on GPUs: their windows and prompt lengths, by slot."""

from __future__ import annotations

import sys
from typing import Any

from vllm_headaware.attention.slots import RequestSlots, SlotValues, slots, use_slots
from vllm_headaware.plan.windows import in_tokens
from vllm_headaware.vllm_compat.carrier import WINDOWS, plan_of
from vllm_headaware.vllm_compat.on_import import on_import
from vllm_headaware.vllm_compat.worker.compactions import carry_out
from vllm_headaware.vllm_compat.wrap import wrap

RUNNER = "vllm.v1.worker.gpu.model_runner"


def install() -> None:
    """Hook the runner once it is imported; where V1 runs it never is."""
    on_import(RUNNER, _hook)


def _hook() -> None:
    runner = sys.modules[RUNNER].GPUModelRunner
    wrap(runner, "initialize_kv_cache", _initialize_kv_cache)
    wrap(runner, "add_requests", _add_requests)
    wrap(runner, "prepare_attn", _prepare_attn)


def _initialize_kv_cache(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    plan = plan_of(self)
    if plan is not None:
        largest = self.compilation_config.max_cudagraph_capture_size or 0
        count = max(self.max_num_reqs, largest) + 1
        use_slots(RequestSlots(len(plan.classes), count, self.device))
    return original(self, *args, **kwargs)


def _add_requests(original: Any, self: Any, scheduler_output: Any) -> Any:
    for name, move in carry_out(self, scheduler_output).items():
        table = self.block_tables.block_tables[move.class_index]
        table.stage_write(self.req_states.req_id_to_index[name], 0, move.after)
    result = original(self, scheduler_output)
    plan = plan_of(self)
    if plan is not None:
        index, plans = self.req_states.req_id_to_index, in_tokens(plan.windows)
        # Requests that no scheduler started, to warm up kernels, have the plan's.
        started = {new.req_id: (plans, plans, 0) for new in scheduler_output.scheduled_new_reqs}
        known = {**started, **(getattr(scheduler_output, WINDOWS, None) or {})}
        slots().write({index[name]: SlotValues(*values) for name, values in known.items()})
    return result


def _prepare_attn(original: Any, self: Any, input_batch: Any) -> Any:
    if plan_of(self) is not None:
        slots().arrange(input_batch.idx_mapping)
    return original(self, input_batch)
