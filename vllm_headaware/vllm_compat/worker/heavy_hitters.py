"""Eviction by score in the worker: steps run without evicted blocks, and what they measured is sent
back (see engine_core/heavy_hitters.py)."""

from __future__ import annotations

from typing import Any

from vllm_headaware.attention.heavy_hitters import evicting
from vllm_headaware.vllm_compat.carrier import EVICTED, MASS
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook the model runner's two halves."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(GPUModelRunner, "execute_model", _execute_model)
    wrap(GPUModelRunner, "sample_tokens", _sample_tokens)
    wrap(GPUModelRunner, "_build_attention_metadata", _build_attention_metadata)


def _execute_model(original: Any, self: Any, scheduler_output: Any, *args: Any, **kw: Any) -> Any:
    self._headaware_evicted = getattr(scheduler_output, EVICTED, None)
    self._headaware_step = None
    return original(self, scheduler_output, *args, **kw)


def _build_attention_metadata(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    evicted = self.__dict__.get("_headaware_evicted")
    if evicted is None:
        return original(self, *args, **kwargs)
    names = list(self.input_batch.req_ids)
    with evicting([evicted.get(name, frozenset()) for name in names]) as steps:
        metadata = original(self, *args, **kwargs)
    if steps:
        self._headaware_step = (names, steps[0])
    return metadata


def _sample_tokens(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    measured = self.__dict__.get("_headaware_step")
    output = original(self, *args, **kwargs)
    if measured is not None and output is not None:
        names, step = measured
        mass = dict(zip(names, step.mass_by_place(), strict=False))
        # With async scheduling the output is still on its way, inside a wrapper.
        setattr(getattr(output, "_model_runner_output", output), MASS, mass)
    return output
