"""vllm-router in front of two real servers: both answer, and both count what they held."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROUTER = ROOT / ".cache" / "router" / "bin" / "vllm-router"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(not ROUTER.exists(), reason="needs vllm-router: run `make router-tool`"),
]


def test_requests_are_shared_out(model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tools.router", "--model", str(model), "--port", "0"),
            *("--router", str(ROUTER), "--folder", str(tmp_path), "--check"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, result
    assert sorted(result["answered"].values()) == [3, 3]
    assert all(result["kv_bytes"].values())
