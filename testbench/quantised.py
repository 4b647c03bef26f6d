"""Models whose weights are int8 and whose activations are rounded to int8 as they come (W8A8), in
the format of compressed-tensors, and what they compute, in plain torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EXACT = torch.cpu._is_vnni_supported()
SATURATES = "vLLM's own int8 products saturate on CPUs without VNNI"
SCHEME: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**SCHEME, "strategy": "channel", "dynamic": False},
            "input_activations": {
                **SCHEME,
                "symmetric": False,  # what vLLM computes in float32 on every CPU
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def make_quantised(parent: Path, folder: Path) -> Path:
    """Write a W8A8 child of a model into a folder, without the parent's head profile.

    Returns:
        The folder.
    """
    shutil.copytree(parent, folder, ignore=shutil.ignore_patterns("*profile*"))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": CONFIG}))
    weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            weights[name] = weight
            continue
        steps, scale = rounded(weight)
        weights[name], weights[f"{name}_scale"] = steps.to(torch.int8), scale
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., n] as whole steps in float, and the size of a step, [..., 1]."""
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
    return (rows / scale).round().clamp(-127, 127), scale


def quantise_like(model: torch.nn.Module) -> None:
    """Make a parent, in transformers, compute what its W8A8 child computes."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith("_proj"):
            steps, scale = rounded(module.weight.data)
            module.weight.data = steps * scale
            module.register_forward_pre_hook(_round_input)


def _round_input(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """From the smallest to the largest number of a row in 255 steps, of which 0 is one."""
    least, most = args[0].amin(-1, keepdim=True), args[0].amax(-1, keepdim=True)
    scale = (most - least) / 255
    zero = (-128 - least / scale).round()
    steps = ((args[0] / scale).round() + zero).clamp(-128, 127) - zero
    return (steps * scale, *args[1:])
