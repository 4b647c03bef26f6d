"""Two hundred malformed or foreign checkpoints, configs and profiles: each is refused in a
sentence, with exit status 2, before weights load."""

from pathlib import Path

import pytest

from tests.engine.child import run_child

pytestmark = pytest.mark.engine
COUNT = 200


def test_each_is_refused_in_a_sentence(model: Path, tmp_path: Path) -> None:
    asked = {"model": str(model), "folder": str(tmp_path / "broken"), "count": COUNT}
    rows = run_child("tests.engine.malformed", asked, {"XDG_CACHE_HOME": str(tmp_path)})
    assert len(rows) == COUNT
    faults = []
    for seed, kind, what, status, said in rows:
        sentences = [line for line in said.splitlines() if line.startswith("vllm: error: ")]
        if status != 2 or len(sentences) != 1 or not 40 < len(sentences[0]) < 1000:
            faults.append(f"{seed} {kind} ({what}): {status}\n{said[-800:]}")
    assert not faults, f"{len(faults)} of {COUNT}\n" + "\n".join(faults[:12])
