"""Flags and policy files become one KVPolicyConfig."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vllm_headaware.config.kv_policy import FIELDS, KVPolicyConfig, nearest
from vllm_headaware.config.names import DEALT_BY_BUDGET
from vllm_headaware.errors import HeadAwareError


def make_config(flags: Mapping[str, Any], policy_file: str | Path | None = None) -> KVPolicyConfig:
    """Merge a policy file with flags; a flag that was given wins over the file.

    Args:
        flags: KVPolicyConfig fields by name; None means "not given".
        policy_file: JSON or YAML mapping with the same names, or None.

    Raises:
        HeadAwareError: unreadable file, unknown key (the nearest valid one is named), bad value,
            or options for a policy that is off.
    """
    given = read_policy_file(policy_file) if policy_file is not None else {}
    given.update({key: value for key, value in flags.items() if value is not None})
    _refuse_unknown(given, "kv policy options")
    config = KVPolicyConfig(**given)
    idle = sorted(set(given) - {"policy", *config.options})
    if idle:
        raise HeadAwareError(
            f"{', '.join(idle)} set, but the KV policy is {config.policy!r} and would ignore it;"
            " add --kv-policy headaware or remove the option"
        )
    dealt = sorted(set(given) & set(DEALT_BY_BUDGET))
    if config.budget and dealt:
        raise HeadAwareError(
            f"{', '.join(dealt)} set, but budget ({config.budget} tokens) decides the windows;"
            " remove one or the other"
        )
    return config


def read_policy_file(path: str | Path) -> dict[str, Any]:
    """Read a JSON or YAML policy file (JSON is YAML) into KVPolicyConfig field values.

    `group_tracker: null` of older files is accepted with a DeprecationWarning.

    Raises:
        HeadAwareError: missing or malformed file, unknown key, `group_tracker` other than null.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeadAwareError(f"cannot read KV policy file {path}: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        detail = " ".join(str(error).split())
        raise HeadAwareError(f"KV policy file {path} is not valid: {detail}") from error
    if not isinstance(values, dict):
        raise HeadAwareError(
            f"KV policy file {path} must hold a mapping such as 'policy: headaware',"
            f" got {type(values).__name__}"
        )
    values = {str(key).replace("-", "_").removeprefix("kv_"): v for key, v in values.items()}
    if "group_tracker" in values:
        if values.pop("group_tracker") is not None:
            raise HeadAwareError(
                f"group_tracker in {path} must be null: group tracking was removed; delete the key"
            )
        warnings.warn(
            f"group_tracker in {path} is deprecated and ignored; delete the key",
            DeprecationWarning,
            stacklevel=2,
        )
    _refuse_unknown(values, f"KV policy file {path}")
    return values


def _refuse_unknown(values: Mapping[str, Any], where: str) -> None:
    for key in values:
        if key not in FIELDS:
            raise HeadAwareError(
                f"unknown key {key!r} in {where}{nearest(key, FIELDS)};"
                f" valid keys: {', '.join(FIELDS)}"
            )
