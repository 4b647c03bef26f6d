"""A vLLM engine in this process, stepped by hand, whose block pool can be looked into."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEFAULT_KV_GIB = "2"


class SteppedEngine:
    """vLLM's own LLM, in-process.

    Args:
        model: model folder.
        kv_policy: what --kv-policy would name; None gives no such argument at all.
        plugins: False keeps vLLM from loading any plugin, as if none were installed.
        max_model_len: tokens of the longest request.
        llm_args: further arguments of vllm.LLM.

    vLLM reads its settings from the environment when it is imported, so this must come first in a
    process, and there can be only one per process.
    """

    def __init__(
        self,
        model: str | Path,
        kv_policy: str | None = None,
        *,
        plugins: bool = True,
        max_model_len: int = 8192,
        **llm_args: Any,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", DEFAULT_KV_GIB)
        if not plugins:
            if kv_policy is not None:
                raise ValueError(
                    f"kv_policy {kv_policy!r} needs the plugin that plugins=False hides"
                )
            os.environ["VLLM_PLUGINS"] = ""
        from vllm import LLM, SamplingParams

        if kv_policy is not None:
            llm_args["kv_policy"] = kv_policy
        self.llm = LLM(str(model), dtype="float32", max_model_len=max_model_len, seed=0, **llm_args)
        self._params = SamplingParams
        core: Any = self.llm.llm_engine.engine_core
        self._scheduler = core.engine_core.scheduler

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool that requests can get (all but the null block)."""
        return self._scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1

    @property
    def held_blocks(self) -> int:
        """Blocks that a request holds now; a cached prefix that nobody uses is not held."""
        return self.num_blocks - self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers together."""
        from vllm_headaware.cache.groups import block_bytes

        return block_bytes(self._scheduler.kv_cache_config)

    def add(
        self,
        name: str,
        prompt_token_ids: Sequence[int],
        max_tokens: int,
        extra_args: dict[str, Any] | None = None,
        logprobs: int | None = None,
    ) -> None:
        """Queue a greedy request that generates exactly max_tokens unless aborted.

        Args:
            extra_args: what a client would send as vllm_xargs.
            logprobs: of how many tokens the outputs say their log probability.
        """
        params = self._params(
            temperature=0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=extra_args,
            logprobs=logprobs,
        )
        prompt: Any = {"prompt_token_ids": list(prompt_token_ids)}
        self.llm.llm_engine.add_request(name, prompt, params)

    def run(self) -> Iterator[Any]:
        """Step until no request is left: vLLM's outputs of each step."""
        while self.llm.llm_engine.has_unfinished_requests():
            yield self.llm.llm_engine.step()

    def step(self) -> dict[str, int]:
        """One engine step: tokens generated so far, of every request that got one."""
        outputs: Any = self.llm.llm_engine.step()
        return {o.request_id: len(o.outputs[0].token_ids) for o in outputs}

    def abort(self, names: Sequence[str]) -> None:
        """End requests and run the engine until nothing is left of them."""
        self.llm.llm_engine.abort_request(list(names))
        while self.llm.llm_engine.has_unfinished_requests():
            self.step()

    def chat(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        """Greedy answers to tokenized prompts, as text."""
        from vllm.inputs import TokensPrompt

        outputs = self.llm.generate(
            [TokensPrompt(prompt_token_ids=list(p)) for p in prompts],
            self._params(temperature=0, max_tokens=max_tokens),
            use_tqdm=False,
        )
        return [o.outputs[0].text for o in outputs]

    def prompt_logprobs(self, prompt: Sequence[int]) -> list[float]:
        """Log probability of every token of a prompt but the first."""
        from vllm.inputs import TokensPrompt

        output = self.llm.generate(
            TokensPrompt(prompt_token_ids=list(prompt)),
            self._params(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False),
            use_tqdm=False,
        )[0]
        found: Any = output.prompt_logprobs
        return [at[token].logprob for at, token in zip(found[1:], prompt[1:], strict=True)]
