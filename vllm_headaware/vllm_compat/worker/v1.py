"""Inputs of a step on model runner V1: windows and prompt lengths of its requests."""

from __future__ import annotations

from typing import Any

from vllm_headaware.attention.requests import during
from vllm_headaware.config.request import WINDOWS_KEY
from vllm_headaware.plan import Plan
from vllm_headaware.vllm_compat.carrier import plan_of
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook the model runner."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(GPUModelRunner, "_build_attention_metadata", _build_attention_metadata)


def _build_attention_metadata(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    plan = plan_of(self)
    if plan is None:
        return original(self, *args, **kwargs)
    with during(_windows_of_step(self, plan), _prompts_of_step(self, plan)):
        return original(self, *args, **kwargs)


def _prompts_of_step(runner: Any, plan: Plan) -> Any:
    """int32 [num_requests], tokens of each prompt; None where windows are always the same."""
    if not any(c.policy.prefill_window for c in plan.classes):
        return None
    import torch

    batch = runner.input_batch
    return torch.from_numpy(batch.num_prompt_tokens[: batch.num_reqs].astype("int32"))


def _windows_of_step(runner: Any, plan: Plan) -> dict[str, Any]:
    """int32 [num_requests] by class name; empty where every request has the plan's windows."""
    own = {}
    for index, request_id in enumerate(runner.input_batch.req_ids):
        params = runner.requests[request_id].sampling_params
        if params is not None and params.extra_args and WINDOWS_KEY in params.extra_args:
            own[index] = params.extra_args[WINDOWS_KEY]
    if not own:
        return {}
    import torch

    rows = [[window or 0 for window in plan.windows]] * len(runner.input_batch.req_ids)
    for index, tokens in own.items():
        rows[index] = tokens
    return {
        head_class.name: torch.tensor(column, dtype=torch.int32)
        for head_class, column in zip(plan.classes, zip(*rows, strict=True), strict=True)
    }
