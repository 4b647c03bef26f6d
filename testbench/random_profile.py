"""Profiles for tiny models: random scores, so that layers get uneven classes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from vllm_headaware.kernels.score_size import num_features
from vllm_headaware.profile.format import SCORES, HeadProfile, ProfiledModel
from vllm_headaware.profile.locate import FILE_NAME
from vllm_headaware.profile.model_hash import model_hash
from vllm_headaware.profile.token_weights import pack


def make_profile(folder: Path, seed: int = 3) -> HeadProfile:
    """A profile of the model in a folder, with random scores of heads and tokens; both gates rank
    heads alike."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    rng = random.Random(seed)
    layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
    scores = {
        name: [[round(rng.random(), 6) for _ in range(heads)] for _ in range(layers)]
        for name in SCORES
    }
    weights = torch.randn(
        layers,
        heads,
        num_features(config["head_dim"]),
        generator=torch.Generator().manual_seed(seed),
    )
    return HeadProfile(
        model=ProfiledModel(
            name=folder.name,
            hash=model_hash(folder),
            num_layers=layers,
            num_kv_heads=heads,
            num_query_heads=config["num_attention_heads"],
            head_size=config["head_dim"],
        ),
        scores={**scores, "answer": scores["gate"]},
        token_scores=pack(weights),
    )


def write_profile(folder: Path, seed: int = 3) -> Path:
    """Save a random profile where `auto` finds it."""
    path = folder / FILE_NAME
    make_profile(folder, seed).save(path)
    return path
