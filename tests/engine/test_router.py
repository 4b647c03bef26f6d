"""vllm-router in front of two real servers: both answer, and both count what they held."""

from pathlib import Path

import pytest

from testbench.one_side import ask

ROOT = Path(__file__).parents[2]
ROUTER = ROOT / ".cache" / "router" / "bin" / "vllm-router"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(not ROUTER.exists(), reason="needs vllm-router: run `make router-tool`"),
]


def test_requests_are_shared_out(model: Path, tmp_path: Path) -> None:
    places = "--model", str(model), "--router", str(ROUTER), "--folder", str(tmp_path)
    status, result = ask("tools.router", [*places, "--port", "0", "--check"], timeout=300)
    assert status == 0, result
    assert sorted(result["answered"].values()) == [3, 3]
    assert all(result["kv_bytes"].values())
