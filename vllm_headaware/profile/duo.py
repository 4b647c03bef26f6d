"""Profiles from the pattern files that DuoAttention (arXiv 2410.10819) publishes.

A pattern is a folder with `full_attention_heads.tsv`, the trained gate of every `[layer][KV head]`
from 0 to 1, and `config.json` with the sinks and the window it was trained with.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.geometry import read_geometry
from vllm_headaware.profile.format import HeadProfile, ProfiledModel
from vllm_headaware.profile.model_hash import model_hash

PATTERN, CONFIG = "full_attention_heads.tsv", "config.json"


def import_duo(pattern_dir: Path, model_dir: Path) -> HeadProfile:
    """A profile of `model_dir` whose scores are the trained gates.

    Only one thing was trained, so the same gate ranks retrieval and induction heads, and the copy
    scores are 0.

    Raises:
        HeadAwareError: a file that is missing or malformed, or a pattern of another shape than the
            model.
    """
    gates = read_pattern(pattern_dir / PATTERN)
    sink, window = _trained_with(pattern_dir / CONFIG)
    geometry = read_geometry(model_dir)
    shape = (geometry.num_layers, geometry.num_kv_heads)
    if (len(gates), len(gates[0])) != shape:
        raise HeadAwareError(
            f"{pattern_dir / PATTERN} has {len(gates)} layers x {len(gates[0])} KV heads, the"
            f" model {shape[0]} x {shape[1]}; it is a pattern of another model"
        )
    return HeadProfile(
        model=ProfiledModel(
            name=model_dir.resolve().name,
            hash=model_hash(model_dir),
            num_layers=geometry.num_layers,
            num_kv_heads=geometry.num_kv_heads,
            num_query_heads=geometry.num_query_heads,
            head_size=geometry.head_size,
        ),
        scores={
            "gate": gates,
            "answer": gates,
            "copy": [[0.0] * len(row) for row in gates],
            "induction": gates,
        },
        method={"imported_from": "DuoAttention", "sink": sink, "window": window},
        provenance={"pattern": pattern_dir.resolve().name},
    )


def read_pattern(path: Path) -> list[list[float]]:
    """`[layer][KV head]` of numbers separated by tabs or spaces; clipped to 0 .. 1.

    Raises:
        HeadAwareError: no such file, rows of unequal length, or something that is not a number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [[float(word) for word in line.split()] for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise HeadAwareError(f"cannot read DuoAttention pattern {path}: {error}") from error
    if not rows or len({len(row) for row in rows}) != 1:
        raise HeadAwareError(f"DuoAttention pattern {path} is not a matrix: layers x KV heads")
    if not all(math.isfinite(value) for row in rows for value in row):
        raise HeadAwareError(f"DuoAttention pattern {path} has values that are not finite")
    return [[min(max(value, 0.0), 1.0) for value in row] for row in rows]


def _trained_with(path: Path) -> tuple[int, int]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return int(values["sink_size"]), int(values["recent_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HeadAwareError(
            f"cannot read sink_size and recent_size from {path}: {error}"
        ) from error
