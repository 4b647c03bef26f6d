"""Models every test can use, and settings vLLM reads from the environment when it is imported."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker and what it starts: one core's work
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

FIRST = (
    *("test_shipped.py", "test_families.py", "test_malformed.py", "test_estimate.py"),
    *("test_images.py", "test_triton.py"),
)
"""Few tests that take minutes each: at the end one worker would do them while others wait."""
DEMO_MODEL = Path(__file__).parent.parent / ".cache" / "models" / "SmolLM2-135M-Instruct"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of FIRST first, the others as they were."""
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers of 8 query heads and 4 KV heads, head size 32."""
    from tests.reference.tiny import TINY, make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.fixture(scope="session")
def tiny_model_3_kv_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers of 9 query heads and 3 KV heads, head size 64."""
    from tests.reference.tiny import TINY_3_KV_HEADS, make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny3"), TINY_3_KV_HEADS)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct; `make test` makes it first."""
    if not (DEMO_MODEL / "config.json").exists():
        pytest.skip("no demo model: run `make model`")
    return DEMO_MODEL
