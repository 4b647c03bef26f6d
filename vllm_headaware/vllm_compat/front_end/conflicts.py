"""The conflict matrix: what --kv-policy can be combined with, each row with its test, and what it
cannot, refused before weights load."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_headaware.attention import SUPPORTED_DEVICES
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError


@dataclass(frozen=True)
class Conflict:
    """One row: `holds(vllm_config, config)` says whether it applies; `what` and `do` make the
    sentence."""

    what: str
    do: str
    holds: Callable[[Any, KVPolicyConfig], bool]


CONFLICTS = (
    Conflict(
        "this device",
        "it runs on CPUs and on NVIDIA GPUs",
        lambda c, _: c.device_config.device_type not in SUPPORTED_DEVICES,
    ),
    Conflict(
        "AMD GPUs (ROCm)",
        "its kernels were made and judged for CPUs and NVIDIA GPUs",
        lambda c, _: c.device_config.device_type == "cuda" and torch.version.hip is not None,
    ),
    Conflict(
        "images whose tokens see each other both ways (Gemma-3)",
        """serve text alone: --limit-mm-per-prompt '{"image": 0}'""",
        lambda c, _: c.model_config.is_mm_prefix_lm,
    ),
    Conflict(
        "multi-head latent attention (MLA)",
        "serve this model without it",
        lambda c, _: c.model_config.use_mla,
    ),
    Conflict(
        "encoder-decoder models",
        "serve this model without it",
        lambda c, _: c.model_config.is_encoder_decoder,
    ),
    Conflict(
        "pooling models",
        "it needs --runner generate",
        lambda c, _: c.model_config.runner_type != "generate",
    ),
    Conflict(
        "hybrid state-space or attention-free models",
        "serve this model without it",
        lambda c, _: c.model_config.is_hybrid or c.model_config.is_attention_free,
    ),
    Conflict(
        "--kv-cache-dtype",
        "remove the flag; K and V are stored in the model's dtype",
        lambda c, _: c.cache_config.cache_dtype != "auto",
    ),
    Conflict(
        "drafts by a model (--speculative-config with other methods than ngram)",
        "its layers would need blocks of their own; use n-gram drafts",
        lambda c, _: c.speculative_config is not None and c.speculative_config.method != "ngram",
    ),
    Conflict(
        "--kv-transfer-config",
        "remove the flag",
        lambda c, _: c.kv_transfer_config is not None,
    ),
    Conflict(
        "--kv-offloading-size",
        "remove the flag",
        lambda c, _: c.cache_config.kv_offloading_size is not None,
    ),
    Conflict(
        "--disable-hybrid-kv-cache-manager",
        "remove the flag; head classes are KV-cache groups",
        lambda c, _: bool(c.scheduler_config.disable_hybrid_kv_cache_manager),
    ),
    Conflict(
        "--pipeline-parallel-size above 1",
        "use --tensor-parallel-size instead",
        lambda c, _: c.parallel_config.pipeline_parallel_size > 1,
    ),
    Conflict(
        "context parallelism",
        "use --tensor-parallel-size instead",
        lambda c, _: (
            c.parallel_config.decode_context_parallel_size > 1
            or c.parallel_config.prefill_context_parallel_size > 1
        ),
    ),
    Conflict(
        "dual-batch overlap (ubatching)",
        "remove --enable-dbo and --ubatch-size",
        lambda c, _: c.parallel_config.use_ubatching,
    ),
    Conflict(
        "h2o with --tensor-parallel-size above 1",
        "scores are those of one rank; use --kv-policy headaware",
        lambda c, config: config.policy == "h2o" and c.parallel_config.tensor_parallel_size > 1,
    ),
    Conflict(
        "h2o with --speculative-config",
        "drafts that are rejected would count for its scores; use --kv-policy headaware",
        lambda c, config: config.policy == "h2o" and c.speculative_config is not None,
    ),
    Conflict(
        "h2o on GPUs",
        "the Triton kernels do not measure attention mass; use --kv-policy headaware",
        lambda c, config: config.policy == "h2o" and c.use_v2_model_runner,
    ),
    Conflict(
        "h2o with --kv-elastic all",
        "its windows are those of scores; use --kv-elastic prompt",
        lambda _, config: config.policy == "h2o" and config.elastic == "all",
    ),
    Conflict(
        "--kv-retrieval-keep with --kv-elastic all",
        "requests would keep everything while there is room; use --kv-elastic prompt",
        lambda _, config: config.retrieval_keep < 1 and config.elastic == "all",
    ),
    Conflict(
        "--kv-retrieval-keep with --speculative-config",
        "drafts that are rejected might be among what stays; remove one of them",
        lambda c, config: config.retrieval_keep < 1 and c.speculative_config is not None,
    ),
    Conflict(
        "model runner V1 on GPUs",
        "unset VLLM_USE_V2_MODEL_RUNNER",
        lambda c, _: c.device_config.device_type == "cuda" and not c.use_v2_model_runner,
    ),
    Conflict(
        "VLLM_KV_CACHE_LAYOUT other than BLHNC",
        "unset it",
        lambda c, _: os.environ.get("VLLM_KV_CACHE_LAYOUT", "BLHNC") != "BLHNC",
    ),
)


@dataclass(frozen=True)
class Supported:
    """One row: what works together with --kv-policy, how it is turned on, and the test of it."""

    what: str
    how: str
    test: str


SUPPORTED = (
    Supported(
        "prefix caching",
        "on by default; what was read by wide windows serves narrower requests",
        "test_elastic.py::test_wide_windows_serve_narrow_requests_and_never_the_other_way_round",
    ),
    Supported("chunked prefill", "on by default", "test_together.py::test_plain"),
    Supported("torch.compile", "on by default", "test_invariants.py::test_7_compiled"),
    Supported("async scheduling", "on by default", "test_together.py::test_plain"),
    Supported("preemption", "vLLM's own", "test_budgets.py::test_windows_hold_through_preemption"),
    Supported(
        "layers with a sliding window of their own, capped logits, sink logits",
        "part of the model (Gemma 2 and 3, gpt-oss, Cohere2, Olmo3, Exaone-4)",
        "test_families.py::test_every_family_is_served_or_refused",
    ),
    Supported(
        "speculative decoding with n-gram drafts",
        '--speculative-config \'{"method": "ngram", ...}\'; windows follow accepted tokens',
        "test_speculation.py::test_drafts_change_no_token",
    ),
    Supported(
        "quantised weights",
        "part of the checkpoint; served by the profile of the model it was made from",
        "test_quantised.py::test_quantised_weights",
    ),
    Supported("LoRA adapters", "--enable-lora", "test_together.py::test_lora"),
    Supported("several answers (n > 1)", "per request", "test_together.py::test_siblings"),
    Supported("guided decoding", "per request", "test_together.py::test_guided"),
    Supported("beam search", "per request", "test_together.py::test_beams"),
    Supported("abort and client disconnect", "per request", "test_together.py::test_abort"),
    Supported(
        "tensor parallelism",
        "--tensor-parallel-size",
        "test_tensor_parallel.py::test_two_ranks_follow_the_rule",
    ),
    Supported(
        "data parallelism",
        "--data-parallel-size",
        "test_front_ends.py::test_every_event_counts_once",
    ),
    Supported(
        "several API servers",
        "--api-server-count",
        "test_front_ends.py::test_every_event_counts_once",
    ),
)
"""The other half of the matrix. docs/compatibility.md has both; a test keeps it so."""


def as_markdown() -> str:
    """The whole matrix, as two tables."""
    works = [f"| {row.what} | {row.how} |" for row in SUPPORTED]
    refused = [f"| {row.what} | {row.do} |" for row in CONFLICTS]
    return "\n".join(
        [
            "| works together | how it is turned on |",
            "|---|---|",
            *works,
            "",
            "| refused at start-up | what to do |",
            "|---|---|",
            *refused,
            "",
        ]
    )


def refuse_conflicts(vllm_config: Any, config: KVPolicyConfig) -> None:
    """Check every row.

    Raises:
        HeadAwareError: the first conflict found, and what to do about it.
    """
    for conflict in CONFLICTS:
        if conflict.holds(vllm_config, config):
            raise HeadAwareError(
                f"--kv-policy does not support {conflict.what}: {conflict.do},"
                " or use --kv-policy full"
            )
