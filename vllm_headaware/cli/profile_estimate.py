"""vllm-headaware profile --dry-run: what it would take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def foresee(
    model_dir: Path, samples: int, lengths: Sequence[int], device: str, dtype: str
) -> dict[str, Any]:
    """Bytes and seconds that measuring a model takes, estimated on this machine.

    Returns:
        Plain values: peak_bytes and its parts, seconds, device, dtype, and machine_bytes, what the
        device has.

    Raises:
        HeadAwareError: no readable model folder.
    """
    import psutil
    import torch
    from transformers import AutoConfig

    from vllm_headaware.errors import HeadAwareError
    from vllm_headaware.profile.estimate import count_parameters, estimate, speed
    from vllm_headaware.profile.model_hash import model_hash
    from vllm_headaware.profile.questions import answer_lengths, answers_each

    model_hash(model_dir)  # a whole model, or a refusal
    try:
        config = AutoConfig.from_pretrained(model_dir).get_text_config()
        found = estimate(
            config,
            count_parameters(model_dir),
            samples=samples,
            lengths=lengths,
            answers=answers_each(samples),
            answer_lengths=answer_lengths(config, max(lengths)),
            element_bytes=getattr(torch, dtype).itemsize,
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise HeadAwareError(f"cannot estimate {model_dir}: {error}") from error
    on_gpu = torch.device(device).type == "cuda"
    return {
        "dry_run": True,
        "device": device,
        "dtype": dtype,
        "weights_bytes": found.weights,
        "peak_bytes": found.peak,
        "machine_bytes": torch.cuda.get_device_properties(device).total_memory
        if on_gpu
        else psutil.virtual_memory().total,
        "seconds": round(found.seconds(*speed(device)), 1),
    }


def in_words(found: dict[str, Any]) -> str:
    """Two lines about it."""
    gib = {name: value / 2**30 for name, value in found.items() if name.endswith("_bytes")}
    fits = gib["peak_bytes"] < gib["machine_bytes"]
    return (
        f"measuring takes about {gib['peak_bytes']:.2f} GiB on {found['device']} in"
        f" {found['dtype']} ({gib['weights_bytes']:.2f} GiB of weights), of the"
        f" {gib['machine_bytes']:.0f} GiB there are, and about"
        f" {max(found['seconds'] / 60, 1):.0f} min\n"
        + (
            "nothing was measured; leave --dry-run out for that"
            if fits
            else "that does not fit: try --dtype bfloat16, shorter --lengths, or --through-engine"
        )
    )
