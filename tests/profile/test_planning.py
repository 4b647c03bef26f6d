"""What "auto" means for a KV dtype, and what is refused without native kernels."""

import pytest

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.cpu.library import find_kernel
from vllm_headaware.plan.dtypes import resolve_dtypes
from vllm_headaware.plan.geometry import ModelGeometry

GEOMETRY = ModelGeometry(30, 9, 3, 64, "bfloat16", 8192)
ODD = ModelGeometry(30, 9, 3, 80, "bfloat16", 8192)


def dtypes(config: KVPolicyConfig) -> tuple[str, str, str]:
    return config.retrieval_dtype, config.induction_dtype, config.local_dtype


def test_auto_is_k8v4_on_native_kernels() -> None:
    assert find_kernel() is not None
    config = KVPolicyConfig("headaware", local_dtype="float16")
    assert dtypes(resolve_dtypes(config, GEOMETRY)) == ("k8v4", "k8v4", "float16")


def test_auto_is_the_models_dtype_without_them() -> None:
    config = resolve_dtypes(KVPolicyConfig("headaware"), ODD)
    assert dtypes(config) == ("bfloat16",) * 3
    asked = KVPolicyConfig("headaware", retrieval_dtype="bfloat16")
    assert dtypes(resolve_dtypes(asked, ODD)) == ("bfloat16",) * 3


def test_other_dtypes_are_refused_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadAwareError, match=r"--kv-local-dtype float16 .*multiples of 32.*80"):
        resolve_dtypes(KVPolicyConfig("headaware", local_dtype="float16"), ODD)
    monkeypatch.setattr("vllm_headaware.kernels.cpu.support.find_kernel", lambda: None)
    with pytest.raises(HeadAwareError, match=r"--kv-retrieval-dtype int4 .*not built .*g\+\+"):
        resolve_dtypes(KVPolicyConfig("headaware", retrieval_dtype="int4"), GEOMETRY)


def test_a_policy_that_is_off_asks_for_nothing() -> None:
    assert resolve_dtypes(KVPolicyConfig(), ODD) == KVPolicyConfig()
