"""Models with windows of their own: the policy is about the other layers, the bytes about all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.profile.profiles import make_model, make_profile
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.eval import runner
from vllm_headaware.eval.lineup import line_up
from vllm_headaware.eval.target import Target, read_target
from vllm_headaware.plan.geometry import read_geometry
from vllm_headaware.profile.model_hash import model_hash
from vllm_headaware.profile.planning import plan_model

OPTIONS = KVPolicyConfig("headaware", retrieval_share=0.5, induction_share=0, sink=4, window=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    make_model("gemma3").float().save_pretrained(folder)
    return folder


@pytest.fixture
def target(folder: Path) -> Target:
    return read_target(folder, make_profile(3, 2))


def test_the_target_is_the_layers_of_full_attention(target: Target) -> None:
    assert target.windows == (11, None, 11)
    assert target.geometry.num_layers == 1
    whole = make_profile(3, 2)
    assert target.profile.scores["gate"] == [whole.scores["gate"][1]]
    # Two layers of two heads; 16 numbers of K and of V, 2 bytes each.
    assert target.fixed_bytes(100) == 2 * 2 * 11 * 64
    assert target.fixed_bytes(7) == 2 * 2 * 7 * 64


def test_every_side_counts_the_windowed_layers(target: Target) -> None:
    contenders = line_up(OPTIONS, target, 200)
    assert contenders["full"].held_bytes == (2 * 200 + 2 * 2 * 11) * 64
    alone = line_up(OPTIONS, dataclasses.replace(target, windows=(None,)), 200)
    for name, contender in contenders.items():
        assert contender.held_bytes == alone[name].held_bytes + 2 * 2 * 11 * 64


def test_full_is_the_model_itself_and_the_others_are_not(target: Target) -> None:
    model: Any = make_model("gemma3").float()
    ids = torch.randint(101, (150,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    exact = dataclasses.replace(target.geometry, kv_dtype="float32")
    contenders = line_up(OPTIONS, dataclasses.replace(target, geometry=exact), 150)
    methods = {name: contender.method for name, contender in contenders.items()}
    errors = {}
    for name, reading in runner.read(model, methods, ids[:-20]):
        got = runner.continuation_logprobs(model, methods[name], reading, [*ids[-20:], 0])[-1]
        errors[name] = float((got - expected).abs().max())
    assert errors["full"] < 1e-4
    assert min(errors[name] for name in ("headaware", "streamingllm", "h2o")) > 1e-2


def test_layers_with_a_window_are_a_class_of_their_own(folder: Path, target: Target) -> None:
    path = folder / "headaware_profile.json"
    profile = make_profile(3, 2, model_hash(folder))
    profile.save(path)
    geometry = read_geometry(folder)
    assert geometry.own_windows == target.windows
    plan, _ = plan_model(KVPolicyConfig("headaware"), geometry, folder)
    own = plan.classes[-1]
    assert (own.name, own.policy.window, own.policy.exact) == ("sliding", geometry.own_window, True)
    for layer, window in enumerate(target.windows):
        dealt = {plan.classes[index].name for index in plan.assignment[layer]}
        assert (dealt == {"sliding"}) == (window is not None)
