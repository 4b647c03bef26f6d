"""Models with quantised weights take their parent's profile, when that can be told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.profile.profiles import make_profile
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.locate import FILE_NAME, find_profile, keep_profile, profile_places
from vllm_headaware.profile.model_hash import model_hash
from vllm_headaware.profile.parents import TOKENIZER, base_model, quantised_by, tokenizer_hash


@pytest.fixture
def parent(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeadProfile:
    """The tiny model's, named org/parent, in an empty user cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    profile = make_profile(4, 4, model_hash(tiny_model))
    shape = dataclasses.replace(profile.model, name="parent", num_query_heads=8, head_size=32)
    made = {TOKENIZER: tokenizer_hash(tiny_model)}
    profile = dataclasses.replace(profile, model=shape, provenance=made)
    keep_profile(profile, profile_places(tiny_model, profile.model.hash)[1:])
    return profile


@pytest.fixture
def child(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose weights differ, and whose config.json says they are quantised."""
    folder = tmp_path / "child"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns(FILE_NAME))
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight * 0.5 for name, weight in weights.items()}, folder / "model.safetensors"
    )
    change_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    return folder


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_quantised_the_weights_is_read(tiny_model: Path, child: Path) -> None:
    assert (quantised_by(tiny_model), quantised_by(child)) == (None, "awq")
    change_config(child, quantization_config=None)
    (child / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert quantised_by(child) == "FP8"


def test_a_parent_is_found_by_its_tokenizer(
    parent: HeadProfile, child: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert find_profile(child, sink=4, window=8) == parent
    assert "weights quantised by awq, found by its tokenizer" in capfd.readouterr().err
    (child / "tokenizer.json").write_text("{}")
    with pytest.raises(HeadAwareError, match=r"quantised \(awq\).*add --kv-head-profile FILE"):
        find_profile(child)


@pytest.mark.parametrize("named", ["org/parent", ["org/parent", "org/other"]])
def test_a_parent_is_found_by_the_card(
    parent: HeadProfile, child: Path, named: object, capfd: pytest.CaptureFixture[str]
) -> None:
    (child / "tokenizer.json").write_text("{}")
    (child / "README.md").write_text(f"---\nbase_model: {json.dumps(named)}\n---\n# Child\n")
    assert base_model(child) == "parent"
    assert find_profile(child) == parent
    assert "its card's base_model parent" in capfd.readouterr().err


def test_a_card_that_names_another_is_believed(parent: HeadProfile, child: Path) -> None:
    (child / "README.md").write_text("---\nbase_model: org/somebody\n---\n")
    with pytest.raises(HeadAwareError, match="no profile of the model it was made from"):
        find_profile(child)


@pytest.mark.parametrize(
    "card", ["", "no front matter", "---\nbase_model: [\n---\n", "---\n3\n---"]
)
def test_a_card_without_a_parent_names_none(child: Path, card: str) -> None:
    (child / "README.md").write_text(card)
    assert base_model(child) is None


def test_a_named_profile_serves_children_of_the_same_shape_only(
    parent: HeadProfile, child: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "parent.json"
    parent.save(path)
    assert find_profile(child, str(path), sink=4, window=8) == parent
    assert f"{path} was measured on parent, the parent" in capfd.readouterr().err
    change_config(child, num_key_value_heads=2)
    with pytest.raises(HeadAwareError, match="another model"):
        find_profile(child, str(path))
    change_config(child, num_key_value_heads=4, quantization_config=None)
    with pytest.raises(HeadAwareError, match="another model"):
        find_profile(child, str(path))
