"""The model hash follows contents, not places, and reads a bounded part of the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.model_hash import model_hash, resolve_model_dir

CONFIG = {"num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"w": torch.arange(97 * 31.0)}, folder / "a.safetensors")
    save_file({"v": torch.ones(17)}, folder / "b.safetensors")
    return folder


def test_place_and_irrelevant_settings_do_not_matter(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other)
    (other / "config.json").write_text(json.dumps({**CONFIG, "use_cache": False}, indent=4))
    (other / "headaware_profile.json").write_text("{}")
    assert model_hash(other) == model_hash(folder)
    assert model_hash(str(folder)).startswith("sha256:")


def test_weights_and_geometry_matter(folder: Path) -> None:
    before = model_hash(folder)
    weights = folder / "a.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    last_byte = model_hash(folder)
    weights.write_bytes(data)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_key_value_heads": 3}))
    geometry = model_hash(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "b.safetensors").unlink()
    assert len({before, last_byte, geometry, model_hash(folder)}) == 4


def test_reads_little_of_large_files(folder: Path) -> None:
    with (folder / "c.safetensors").open("wb") as file:
        header = json.dumps({"w": {"data_offsets": [0, 200 * 2**30]}}).encode()
        file.write(len(header).to_bytes(8, "little") + header)
        # Sparse: takes no room, but nobody could read it in time.
        file.truncate(8 + len(header) + 200 * 2**30)
    assert model_hash(folder) == model_hash(folder)


@pytest.mark.parametrize("damage", ["short", "long", "header", "empty", "text"])
def test_refuses_files_that_are_not_whole(folder: Path, damage: str) -> None:
    path = folder / "b.safetensors"
    data = path.read_bytes()
    spoilt = {
        "short": data[:-1],
        "long": data + b"0",
        "header": data[:9] + b"?" + data[10:],
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }
    path.write_bytes(spoilt[damage])
    with pytest.raises(HeadAwareError, match=r"b\.safetensors is truncated or no safetensors file"):
        model_hash(folder)


def test_refuses_folders_without_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadAwareError, match=r"config\.json"):
        model_hash(tmp_path)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(HeadAwareError, match=r"no \*\.safetensors weights"):
        model_hash(folder)


def test_resolves_folders_and_refuses_unknown_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model_dir(folder) == folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HeadAwareError, match="nobody/no-such-model"):
        resolve_model_dir("nobody/no-such-model")
