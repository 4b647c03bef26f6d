"""KV policies: each turns head scores into head classes. The table is what --kv-policy names."""

from vllm_headaware.policies.base import HeadPolicy, KVPolicy
from vllm_headaware.policies.full import Full
from vllm_headaware.policies.h2o import H2O
from vllm_headaware.policies.headaware import HeadAware
from vllm_headaware.policies.streamingllm import StreamingLLM

POLICIES: dict[str, type[KVPolicy]] = {
    "full": Full,
    "headaware": HeadAware,
    "streamingllm": StreamingLLM,
    "h2o": H2O,
}

__all__ = ["H2O", "POLICIES", "Full", "HeadAware", "HeadPolicy", "KVPolicy", "StreamingLLM"]
