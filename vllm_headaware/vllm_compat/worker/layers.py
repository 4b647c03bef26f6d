"""Split the attention layers of a model between its construction and its weights."""

from __future__ import annotations

from typing import Any

from vllm_headaware.vllm_compat.carrier import get_plan
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook model construction."""
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    wrap(BaseModelLoader, "create_model", _create_model)


def _create_model(
    original: Any, self: Any, vllm_config: Any, model_config: Any, prefix: str = ""
) -> Any:
    model = original(self, vllm_config=vllm_config, model_config=model_config, prefix=prefix)
    plan = get_plan(vllm_config)
    if plan is not None:
        from vllm.config import set_current_vllm_config
        from vllm.distributed import get_tensor_model_parallel_rank

        from vllm_headaware.attention.choice import choose_kernels
        from vllm_headaware.attention.split import split_model

        with set_current_vllm_config(vllm_config):
            kernels = choose_kernels(plan.geometry, vllm_config.use_v2_model_runner)
            rank = get_tensor_model_parallel_rank()
            split_model(model, vllm_config, plan, rank, kernels)
    return model
