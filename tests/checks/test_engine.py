"""What the probe reads off an engine is what the engine holds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbench.random_profile import make_profile

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

# An engine needs a process of its own. Reports what is held around every step of one request.
SCRIPT = """
import json, sys
from testbench.engine import SteppedEngine

PROMPT, NEW = 300, 97

def kv_storage_bytes(worker):
    context = worker.model_runner.compilation_config.static_forward_context
    caches = [layer.kv_cache for layer in context.values() if hasattr(layer, "kv_cache")]
    storages = [cache.untyped_storage() for cache in caches if cache.numel()]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())

if __name__ == "__main__":
    engine = SteppedEngine(
        sys.argv[1], max_model_len=512, enforce_eager=True, **json.loads(sys.argv[2])
    )
    engine.add("aborted", [7], NEW)
    engine.step()
    engine.abort(["aborted"])
    after_abort = engine.held_blocks
    engine.add("one", [7 + i % 200 for i in range(PROMPT)], NEW)
    held, generated = [], 0
    while generated < NEW:
        held.append(engine.held_blocks)
        generated = engine.step().get("one", generated)
    [storage] = engine.llm.collective_rpc(kv_storage_bytes)
    print(json.dumps({
        "after_abort": after_abort,
        "held": held,
        "after": engine.held_blocks,
        "block_bytes": engine.block_bytes,
        "num_blocks": engine.num_blocks,
        "storage_bytes": storage,
        "block_tokens": engine.llm.llm_engine.vllm_config.cache_config.block_size,
    }))
"""


def report(folder: Path, tmp_path: Path, **llm_args: Any) -> dict[str, Any]:
    """Run the script on an engine with these arguments."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), json.dumps(llm_args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_stock_holds_every_token(tiny_model: Path, tmp_path: Path) -> None:
    """One request of 397 tokens: whole blocks of all tokens, and nothing once it is done."""
    got = report(tiny_model, tmp_path)
    tokens = got["block_tokens"]
    assert got["after_abort"] == got["after"] == 0
    assert got["held"][0] == 0
    assert got["held"][-1] == -(-396 // tokens), "K and V of the last token are never written"
    assert got["held"] == sorted(got["held"])
    assert got["block_bytes"] == tokens * 4 * 4 * 2 * 32 * 4, "layers, KV heads, K and V, size, f32"
    assert got["storage_bytes"] == (got["num_blocks"] + 1) * got["block_bytes"]


def test_headaware_bytes_are_those_of_the_buffer(tiny_model: Path, tmp_path: Path) -> None:
    """Classes share one buffer: its blocks are counted once, not once per class."""
    profile = tmp_path / "profile.json"
    make_profile(tiny_model).save(profile)
    got = report(
        tiny_model, tmp_path, kv_policy="headaware", kv_head_profile=str(profile), kv_sink=0
    )
    assert got["after_abort"] == got["after"] == 0
    assert got["storage_bytes"] == (got["num_blocks"] + 1) * got["block_bytes"]
