"""Options of a request are checked where vLLM checks its own: HTTP 400 before it is queued."""

from __future__ import annotations

from typing import Any

from vllm_headaware.cache.admission import Pool
from vllm_headaware.config.request import read_options
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan import Plan
from vllm_headaware.plan.ladder import Ladders, readings
from vllm_headaware.plan.windows import Windows
from vllm_headaware.vllm_compat.carrier import get_limits, plan_of
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook the front end."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.input_processor import InputProcessor

    wrap(AsyncLLM, "generate", _generate)
    wrap(InputProcessor, "_validate_params", _validate_params)
    wrap(InputProcessor, "process_inputs", _process_inputs)


def _validate_params(original: Any, self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, params, *args, **kwargs)
    plan = plan_of(self)
    if plan is not None:
        _checked_ladder(self, plan, params)
    return result


def _generate(
    original: Any, self: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Refuse when called: vLLM itself looks at a request when its first token is asked for, and by
    then a streamed answer has begun with HTTP 200."""
    processor = self.input_processor
    plan = plan_of(processor)
    if plan is not None:
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        _refuse(processor, plan, sampling_params, None if ids is None else len(ids))
    return original(self, prompt, sampling_params, *args, **kwargs)


def _process_inputs(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    from vllm.exceptions import VLLMValidationError

    request = original(self, *args, **kwargs)
    plan = plan_of(self)
    if plan is not None:
        if request.resumable:
            raise VLLMValidationError(
                "requests with streamed input cannot be served with --kv-policy"
            )
        length = len(request.prompt_token_ids or request.prompt_embeds)
        _refuse(self, plan, request.sampling_params, length)
    return request


def _checked_ladder(processor: Any, plan: Plan, params: Any) -> list[Windows]:
    """Windows a request may get; of a pinned level only that one."""
    from vllm.exceptions import VLLMValidationError

    ladders = processor.__dict__.get("_headaware_ladders")
    if ladders is None:
        ladders = processor._headaware_ladders = Ladders(plan, get_limits(processor.vllm_config))
    try:
        options = read_options(getattr(params, "extra_args", None), plan.policy)
        levels = ladders.of(options)
    except HeadAwareError as error:
        raise VLLMValidationError(str(error), parameter="vllm_xargs") from None
    return levels if options.level is None else [levels[options.level]]


def _refuse(processor: Any, plan: Plan, params: Any, num_prompt: int | None) -> None:
    """Bad options; and where the lengths are known, a request that could never fit."""
    from vllm.exceptions import VLLMValidationError

    config = processor.vllm_config
    tightest = _checked_ladder(processor, plan, params)[-1]
    blocks = (config.cache_config.num_gpu_blocks or 0) // config.parallel_config.data_parallel_size
    if params is None or params.max_tokens is None or num_prompt is None or not blocks:
        return
    tokens = min(num_prompt + params.max_tokens, config.model_config.max_model_len)
    pool = Pool(plan.classes, blocks - 1, config.max_in_flight_tokens)
    narrowest = readings(plan.classes, tightest, num_prompt)[-1]
    if not pool.fits_alone(tightest, narrowest, tokens, num_prompt):
        raise VLLMValidationError(
            f"a request of {tokens} tokens with this KV budget does not fit into the KV cache, even"
            " alone; ask for fewer max_tokens, a smaller kv_budget or no kv_policy 'full'",
            parameter="vllm_xargs",
        )
