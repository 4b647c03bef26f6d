"""What lm-eval is asked and what is read back from it."""

import argparse
import json
from pathlib import Path

import pytest

from checks.outside_check import (
    TEXT_TASK,
    conclude,
    lm_eval_command,
    main,
    read_metrics,
    write_text_task,
)


def test_the_text_task_has_passages_of_the_evaluation_half(tmp_path: Path) -> None:
    from vllm_headaware.tasks.text import held_out_text

    write_text_task(tmp_path, 3)
    task = json.loads((tmp_path / f"{TEXT_TASK}.yaml").read_text())
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    passages = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    text = held_out_text()
    places = [text.index(passage) for passage in passages]
    assert len(passages) == 3
    assert places == sorted(places)
    assert places[0] >= len(text) // 2, "the first half is for calibration"


def test_the_harness_is_sent_to_the_server(tmp_path: Path) -> None:
    args = argparse.Namespace(
        model=tmp_path / "m", lm_eval=Path("lm_eval"), tokens=1024, output=tmp_path
    )
    command = lm_eval_command(args, "http://127.0.0.1:9", ["a", "b"], 5, tmp_path / "out")
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert "base_url=http://127.0.0.1:9/v1/completions" in options["--model_args"]
    assert (options["--tasks"], options["--limit"]) == ("a,b", "5")
    assert json.loads(options["--metadata"])["max_seq_lengths"] == [1024]


def test_only_what_was_measured_is_read(tmp_path: Path) -> None:
    results = {
        "needle": {"alias": "needle", "1024,none": 0.75, "4096,none": -1, "1024_stderr,none": 0.1},
        "text": {"bits_per_byte,none": 1.5, "bits_per_byte_stderr,none": "N/A", "sample_len": 4},
    }
    (tmp_path / "some model").mkdir()
    file = tmp_path / "some model" / "results_2001.json"
    file.write_text(json.dumps({"results": results}))
    ours = read_metrics(tmp_path)
    assert ours == {"needle": {"1024": 0.75}, "text": {"bits_per_byte": 1.5}}
    stock = {"needle": {"1024": 0.0}, "text": {"bits_per_byte": 1.2}}
    assert conclude(ours, stock)["ratio"] == {"needle": {}, "text": {"bits_per_byte": 1.25}}


def test_a_missing_harness_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--lm-eval", str(tmp_path / "none"), "--output", str(tmp_path)]) == 2
    assert "make lm-eval-tool" in capsys.readouterr().err
