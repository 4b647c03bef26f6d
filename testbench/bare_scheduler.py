"""vLLM's scheduler and block manager without a model: a runner that only says which token came."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbench.blank_model import write_blank_model
from vllm_headaware.plan import Plan


class BareScheduler:
    """A scheduler in Llama-3.1-8B's geometry (or another: see write_blank_model), and its requests.

    Args:
        policy: what --kv-policy names; None: stock, blocks of 16 tokens.
        longest: tokens of the longest request.
        blocks: of the pool.
        geometry: of the model.
        engine: further arguments of vllm's EngineArgs.
    """

    def __init__(
        self,
        policy: str | None,
        longest: int,
        *,
        geometry: dict[str, int] | None = None,
        blocks: Any,
        **engine: Any,
    ) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        folder = Path(tempfile.mkdtemp())
        shape = {"layers": 32, "query_heads": 32, "kv_heads": 8, "head_size": 128}
        shape |= geometry or {}
        write_blank_model(folder, longest, **shape)
        engine |= {"kv_policy": policy} if policy else {"block_size": 16}
        config = EngineArgs(
            str(folder),
            max_model_len=longest,
            async_scheduling=False,
            skip_tokenizer_init=True,
            load_format="dummy",
            **engine,
        ).create_engine_config()
        self.config = config
        self.plan: Plan | None = None
        specs = self._specs(shape)
        block_bytes = self.plan.block_bytes if self.plan else self._stock_block_bytes(shape)
        count = blocks(self.plan) if callable(blocks) else blocks
        self.scheduler = self._make(specs, (count + 1) * block_bytes)
        self._hasher: Any = None

    def _specs(self, shape: dict[str, int]) -> dict[str, Any]:
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        from vllm_headaware.cache.specs import make_spec
        from vllm_headaware.vllm_compat.carrier import get_plan

        plan = self.plan = get_plan(self.config)
        size = shape["head_size"]
        if plan is None:
            spec = FullAttentionSpec(
                block_size=16, num_kv_heads=shape["kv_heads"], head_size=size, dtype=torch.bfloat16
            )
            return {f"model.layers.{layer}.attn": spec for layer in range(shape["layers"])}
        return {
            f"model.layers.{layer}.attn.{c.name}": make_spec(
                c, num_kv_heads=len(own), head_size=size, vllm_config=self.config
            )
            for layer in range(shape["layers"])
            for c, own in zip(plan.classes, plan.heads(layer), strict=True)
            if own
        }

    @staticmethod
    def _stock_block_bytes(shape: dict[str, int]) -> int:
        return 16 * shape["layers"] * shape["kv_heads"] * 2 * shape["head_size"] * 2

    def _make(self, specs: dict[str, Any], num_bytes: int) -> Any:
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine import core
        from vllm.v1.structured_output import StructuredOutputManager

        tools: Any = core  # both versions have them here, though not from one place
        self.config.cache_config.kv_cache_layout = "BLHNC" if self.plan else "LBHNC"
        grouped = []
        if hasattr(tools, "get_global_kv_cache_groups"):  # 0.33
            grouped = [tools.get_global_kv_cache_groups(self.config, [specs])]
        caches = tools.get_kv_cache_configs(self.config, [specs], [num_bytes], *grouped)
        cache = tools.generate_scheduler_kv_cache_config(caches)
        self.config.cache_config.num_gpu_blocks = cache.num_blocks
        block_size, hash_block_size = tools.resolve_kv_cache_block_sizes(cache, self.config)
        self.hash_block_size = hash_block_size
        return Scheduler(
            vllm_config=self.config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(self.config),
            block_size=block_size,
            hash_block_size=hash_block_size,
            log_stats=True,
        )

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        max_tokens: int,
        extra_args: dict[str, Any] | None = None,
    ) -> Any:
        """Queue a request; it generates max_tokens tokens."""
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.request import Request

        if self._hasher is None:
            init_none_hash(sha256)
            self._hasher = get_request_block_hasher(self.hash_block_size, sha256)
        request = Request(
            name,
            prompt_token_ids=list(prompt),
            sampling_params=SamplingParams(
                max_tokens=max_tokens, ignore_eos=True, temperature=0, extra_args=extra_args
            ),
            pooling_params=None,
            block_hasher=self._hasher,
        )
        self.scheduler.add_request(request)
        return request

    def step(self) -> None:
        """One schedule() and update_from_output(), in which every request gets a token."""
        from vllm.v1.outputs import ModelRunnerOutput

        output = self.scheduler.schedule()
        names = list(output.num_scheduled_tokens)
        requests = self.scheduler.requests
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: i for i, name in enumerate(names)},
                sampled_token_ids=[
                    [7] if requests[name].num_computed_tokens >= requests[name].num_tokens else []
                    for name in names
                ],
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
