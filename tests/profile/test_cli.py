"""profile and inspect as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.profile.profiles import make_profile
from vllm_headaware.cli.main import COMMANDS, main
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.locate import FILE_NAME
from vllm_headaware.profile.model_hash import model_hash

SHORT = ["--samples", "2", "--lengths", "97", "--sink", "4", "--window", "16"]


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "p.json"
    make_profile(12, 2).save(path)
    return path


def test_profile_then_inspect(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made.json"
    assert main(["profile", str(tiny_model), "-o", str(path), "--json", *SHORT]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["profile"] == str(path)
    assert summary["checksum"] == HeadProfile.load(path).checksum
    assert summary["method"]["lengths"] == [97]
    assert main(["inspect", str(path)]) == 0
    assert "4 layers x 4 KV heads" in capsys.readouterr().out


def test_digits_show_the_ranking_without_colour(
    profile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", str(profile)]) == 0
    out = capsys.readouterr().out
    assert "\x1b[3" not in out
    # 24 scores that grow with layer, then head: each tenth holds 2 or 3 of them.
    rows = [line.split()[-1] for line in out.splitlines() if line.lstrip().startswith("head ")]
    order = [(9 - rank * 10 // 24) for rank in range(23, -1, -1)]
    assert rows == ["".join(map(str, order[h::2])) for h in range(2)]


def test_json_is_one_object(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(profile), "--score", "copy", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["score"] == "copy"
    assert report["scores"] == make_profile(12, 2).scores["copy"]
    assert report["deciles"][-1][-1] == 9
    assert report["deciles"][0][0] == 0


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (17, 3), (80, 8)])
def test_png(tmp_path: Path, layers: int, heads: int) -> None:
    path, picture = tmp_path / "p.json", tmp_path / "p.png"
    make_profile(layers, heads).save(path)
    assert main(["inspect", str(path), "--png", str(picture)]) == 0
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    width = int.from_bytes(data[16:20], "big")
    assert 1000 <= width <= 2200


def test_inspect_of_a_model_checks_the_model(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / FILE_NAME).unlink(missing_ok=True)
    assert main(["inspect", str(model)]) == 2
    assert "has no head profile yet; make one with" in capsys.readouterr().err
    make_profile(4, 4).save(model / FILE_NAME)
    assert main(["inspect", str(model)]) == 2
    assert "another model" in capsys.readouterr().err
    make_profile(4, 4, model_hash(model)).save(model / FILE_NAME)
    assert main(["inspect", str(model)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{tmp}/none.json"], "cannot read head profile"),
        (["inspect", "{tmp}/p.json", "--png", "{tmp}/no/folder.png"], "cannot write picture"),
        (["profile", "{model}", "--samples", "1"], "at least 2"),
        (["profile", "{model}", "--lengths", "12,x"], "--lengths: '12,x' is not a list"),
        (["profile", "{model}", "--lengths", "64"], "fit in sinks and window"),
    ],
)
def test_errors_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    profile: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [a.format(tmp=profile.parent, model=tiny_model) for a in arguments]
    assert main(filled) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_what_the_table_says(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: vllm-headaware {command}" in capsys.readouterr().out


def test_help_is_fast_and_heavy_imports_wait() -> None:
    code = (
        "import sys; from vllm_headaware.cli.main import make_parser;"
        "make_parser('').format_help();"
        "print([m for m in sys.modules if m.startswith('vllm_headaware.cli.')]);"
        "make_parser('profile'); make_parser('inspect');"
        "print({'torch', 'transformers', 'vllm', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['vllm_headaware.cli.main']", "set()"]


def test_a_reader_that_leaves_early_is_no_error(profile: Path) -> None:
    command = f"{sys.executable} -m vllm_headaware.cli.main inspect {profile} --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
