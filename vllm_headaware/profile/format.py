"""The profile file: scores per `[layer][KV head]` as a text matrix, provenance, and a checksum."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.token_weights import read

FORMAT = "vllm-headaware-head-profile"
VERSION = 2
SINK, WINDOW = 64, 512
"""Tokens that a local head would keep, unless one says otherwise: with wider windows only long
prompts would tell heads apart."""
SCORES = ("gate", "answer", "copy", "induction")
REDO = "make a new one with `vllm-headaware profile MODEL`"


@dataclass(frozen=True)
class ProfiledModel:
    """Which model a profile was measured on; `hash` is that of profile/model_hash.py."""

    name: str
    hash: str
    num_layers: int
    num_kv_heads: int
    num_query_heads: int
    head_size: int


@dataclass(frozen=True)
class HeadProfile:
    """Scores of every KV head; higher means more in need of history.

    Attributes:
        scores: by name (SCORES), `[layer][KV head]`, finite and not negative.
        method: how they were measured: seed, sink, window, samples, lengths.
        agreement: Spearman correlations between sample halves and between methods.
        token_scores: weights by which heads tell which tokens of a prompt they will need
            (profile/token_weights.py); empty where that was not measured.
        ablation: what answers lose as heads are closed in order of rank (profile/ablation.py);
            empty where that was not measured.
        provenance: when, how long and with which versions.
    """

    model: ProfiledModel
    scores: Mapping[str, list[list[float]]]
    method: Mapping[str, Any] = field(default_factory=dict)
    agreement: Mapping[str, Any] = field(default_factory=dict)
    ablation: Mapping[str, Any] = field(default_factory=dict)
    token_scores: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checksum(self) -> str:
        """sha256 over everything else in the file, independent of its layout."""
        text = json.dumps(self._body(), sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def require_model(
        self,
        model_hash: str,
        num_layers: int | None = None,
        num_kv_heads: int | None = None,
        *,
        path: str | Path = "profile",
    ) -> None:
        """Refuse to be used for another model.

        Args:
            model_hash: of profile/model_hash.py.
            num_layers: of the model as it is about to run; None to leave unchecked.
            num_kv_heads: likewise, of a layer.
            path: where this profile is from, for the message.

        Raises:
            HeadAwareError: model_hash is not the hash this profile was measured on, or the shape
                differs.
        """
        if self.model.hash != model_hash:
            raise HeadAwareError(
                f"head profile {path} was measured on another model ({self.model.name},"
                f" {self.model.hash[:19]}; this one is {model_hash[:19]}); {REDO}"
            )
        for given, own, what in (
            (num_layers, self.model.num_layers, "layers"),
            (num_kv_heads, self.model.num_kv_heads, "KV heads per layer"),
        ):
            if given is not None and given != own:
                raise HeadAwareError(
                    f"head profile {path} has {own} {what}, the model {given}; {REDO}"
                )

    def save(self, path: str | Path) -> None:
        """Write atomically: readers see the old file or the new one, never a part."""
        path = Path(path)
        values = {**self._body(), "checksum": self.checksum}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(_render(values))
            # Temporary files are private; a profile may be read by whoever may read its folder.
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path: str | Path) -> HeadProfile:
        """Read and check a profile file.

        Raises:
            HeadAwareError: missing, truncated, foreign, damaged or ill-shaped file.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HeadAwareError(f"cannot read head profile {path}: {error}") from error
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise HeadAwareError(
                f"head profile {path} is truncated or not JSON ({error}); {REDO}"
            ) from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise HeadAwareError(f"{path} is not a head profile; {REDO}")
        if values.get("version") != VERSION:
            raise HeadAwareError(
                f"head profile {path} has version {values.get('version')!r}, this release reads"
                f" {VERSION}; {REDO}"
            )
        try:
            profile = cls(
                model=ProfiledModel(**values["model"]),
                scores=values["scores"],
                method=values["method"],
                agreement=values["agreement"],
                ablation=values.get("ablation", {}),
                token_scores=values.get("token_scores", ""),
                provenance=values["provenance"],
            )
            checksum = values["checksum"]
            for part in ("method", "agreement", "ablation", "provenance"):
                if not isinstance(getattr(profile, part), dict):
                    raise TypeError(f"{part} is {getattr(profile, part)!r}")
        except (KeyError, TypeError) as error:
            raise HeadAwareError(f"head profile {path} lacks a part ({error}); {REDO}") from error
        profile._require_sound(path)
        if checksum != profile.checksum:
            raise HeadAwareError(
                f"head profile {path} was changed after it was made (its checksum does not match);"
                f" {REDO}"
            )
        return profile

    def _require_sound(self, path: Path) -> None:
        layers, heads = self.model.num_layers, self.model.num_kv_heads
        try:
            if self.token_scores:
                read(self.token_scores, layers, heads, self.model.head_size)
        except (ValueError, TypeError) as error:
            raise HeadAwareError(f"token scores in head profile {path}: {error}; {REDO}") from error
        for name in SCORES:
            matrix = self.scores.get(name) if isinstance(self.scores, dict) else None
            if not isinstance(matrix, list):
                raise HeadAwareError(f"head profile {path} has no {name!r} scores; {REDO}")
            shape = [len(row) if isinstance(row, list) else 0 for row in matrix]
            if shape != [heads] * layers:
                raise HeadAwareError(
                    f"{name!r} scores in head profile {path} are not {layers} layers x {heads} KV"
                    f" heads; {REDO}"
                )
            for row in matrix:
                for score in row:
                    if type(score) not in (int, float) or not math.isfinite(score) or score < 0:
                        raise HeadAwareError(
                            f"{name!r} scores in head profile {path} contain {score!r}, expected"
                            f" finite numbers that are not negative; {REDO}"
                        )

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": asdict(self.model),
            "scores": dict(self.scores),
            "method": dict(self.method),
            "agreement": dict(self.agreement),
            **({"ablation": dict(self.ablation)} if self.ablation else {}),
            **({"token_scores": self.token_scores} if self.token_scores else {}),
            "provenance": dict(self.provenance),
        }


def _render(values: dict[str, Any]) -> str:
    """Indented JSON with one layer of scores per line."""
    parts = []
    for key, value in values.items():
        if key == "scores":
            matrices = (
                f'    "{name}": [\n'
                + ",\n".join(f"      {json.dumps(r)}" for r in rows)
                + "\n    ]"
                for name, rows in value.items()
            )
            text = "{\n" + ",\n".join(matrices) + "\n  }"
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
