"""Inputs of a step on model runner V1: windows and prompt lengths of its requests."""

from __future__ import annotations

from typing import Any

from vllm_headaware.attention.requests import ClassWindows, during
from vllm_headaware.plan import Plan
from vllm_headaware.plan.windows import in_tokens
from vllm_headaware.vllm_compat.carrier import WINDOWS, plan_of
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook the model runner."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(GPUModelRunner, "execute_model", _execute_model)
    wrap(GPUModelRunner, "_build_attention_metadata", _build_attention_metadata)


def _execute_model(original: Any, self: Any, scheduler_output: Any, *args: Any, **kw: Any) -> Any:
    if plan_of(self) is not None:
        known = self.__dict__.setdefault("_headaware_windows", {})
        for name in scheduler_output.finished_req_ids:
            known.pop(name, None)
        known.update(getattr(scheduler_output, WINDOWS, None) or {})
    return original(self, scheduler_output, *args, **kw)


def _build_attention_metadata(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    plan = plan_of(self)
    if plan is None:
        return original(self, *args, **kwargs)
    with during(_windows_of_step(self, plan)):
        return original(self, *args, **kwargs)


def _windows_of_step(runner: Any, plan: Plan) -> dict[str, ClassWindows]:
    """By class name; empty where every query has the plan's windows."""
    known, batch = runner.__dict__.get("_headaware_windows", {}), runner.input_batch
    plans = in_tokens(plan.windows)
    nothing = (plans, plans, 0)
    rows = [known.get(name, nothing) for name in batch.req_ids]
    computed = batch.num_computed_tokens_cpu
    if all(
        windows == plans and (reading == plans or computed[index] >= num_prompt)
        for index, (windows, reading, num_prompt) in enumerate(rows)
    ):
        return {}
    import torch

    prompts = torch.tensor([row[2] for row in rows], dtype=torch.int32)
    return {
        c.name: ClassWindows(
            torch.tensor([row[0][index] for row in rows], dtype=torch.int32),
            torch.tensor([row[1][index] for row in rows], dtype=torch.int32),
            prompts,
        )
        for index, c in enumerate(plan.classes)
    }
