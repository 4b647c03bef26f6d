"""Which model is this? A hash that is cheap even for a hundred gigabytes of weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from vllm_headaware.errors import HeadAwareError

SAMPLES, SAMPLE_BYTES = 16, 4096
MOST_HEADER_BYTES = 100_000_000
"""That a safetensors file may have, by its specification."""
GEOMETRY_KEYS = (
    "architectures",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
    "rope_parameters",
    "vocab_size",
)


def model_hash(model_dir: str | Path) -> str:
    """Hash attention geometry, and of each weight file its size, header and evenly spaced samples.

    It depends on contents only, not on the folder's name or place. Reads SAMPLES x SAMPLE_BYTES
    bytes and one header per file.

    Raises:
        HeadAwareError: no config.json, or no whole *.safetensors in the folder.
    """
    folder = Path(model_dir)
    digest = hashlib.sha256()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeadAwareError(f"cannot read {folder / 'config.json'}: {error}") from error
    geometry = {key: config.get(key) for key in GEOMETRY_KEYS}
    digest.update(json.dumps(geometry, sort_keys=True).encode())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise HeadAwareError(
            f"{folder} has no *.safetensors weights, which a head profile is bound to; convert the"
            " model to safetensors first"
        )
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, _ = read_header(file, size, path)
            digest.update(size.to_bytes(8, "little"))
            digest.update(header)
            for index in range(SAMPLES):
                file.seek(index * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return "sha256:" + digest.hexdigest()


def read_header(file: BinaryIO, size: int, path: Path) -> tuple[bytes, dict[str, Any]]:
    """The header of a safetensors file, which must describe a file of this size: as it is, and what
    it says of each tensor.

    Raises:
        HeadAwareError: the file is truncated or is no safetensors file.
    """
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length) if length <= min(size - 8, MOST_HEADER_BYTES) else b""
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        ends = [part["data_offsets"][1] for part in tensors.values()]
        whole = 8 + length + max(ends, default=0) == size
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise HeadAwareError(
            f"{path} is truncated or no safetensors file ({size:,} bytes); download the model again"
        )
    return header, tensors


def resolve_model_dir(model: str | Path) -> Path:
    """The local folder of a model: itself, or the hub snapshot it names (downloaded if need be).

    Raises:
        HeadAwareError: neither a folder nor a model that the hub client can get.
    """
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(model), allow_patterns=["*.json", "*.safetensors", "*.jinja"])
        )
    except Exception as error:
        raise HeadAwareError(
            f"model {str(model)!r} is neither a folder here nor a model the hub client can get"
            f" ({type(error).__name__}); give the path of a downloaded model"
        ) from error
