"""`make gpu-check` without a GPU: every part at tiny sizes, in the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]


@pytest.mark.engine
@pytest.mark.slow
def test_every_part_runs_dry() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "checks.gpu", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    summary = lines[-1]
    assert summary["ok"], done.stdout[-3000:]
    assert summary["peers_that_could_not_run"] == 0, done.stdout[-3000:]
    sides = {line["side"] for line in lines if line.get("part") == "decode" and "side" in line}
    assert sides == {*(f"ours {kind}" for kind in ("k8v4", "int8", "int4", "bfloat16")), "stock",
                     "vllm int8", "vllm int4"}  # fmt: skip
    assert {line["side"] for line in lines if "decode_step_ms" in line} == {"stock", "ours"}


def test_a_roofline_is_drawn_from_its_lines(tmp_path: Path) -> None:
    from checks.gpu.plot import draw, points

    decode = [
        {"part": "decode", "side": side, "load": "2 x 90", "bytes_read": size, "us": us}
        for side, size, us in (("stock", 4e6, 4.0), ("ours k8v4", 1e6, 3.0))
    ]
    tuned = [{"part": "tune decode", "2 x 90, 1 full": us} for us in (2.5, 2.0)]
    found = points([*decode, *tuned])
    assert found["tuned"] == [("2 x 90", 1e6, 2.0)]
    draw(found, "a card").savefig(tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
