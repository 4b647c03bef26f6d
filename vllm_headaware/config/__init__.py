"""What the operator and a request may ask for."""

from vllm_headaware.config.kv_policy import FIELDS, PARSERS, KVPolicyConfig
from vllm_headaware.config.policy_file import make_config, read_policy_file

__all__ = ["FIELDS", "PARSERS", "KVPolicyConfig", "make_config", "read_policy_file"]
