"""Options that the evaluations share."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from vllm_headaware.config import FIELDS, KVPolicyConfig, make_config
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.eval.journal import journal_path
from vllm_headaware.profile.format import HeadProfile
from vllm_headaware.profile.locate import find_profile
from vllm_headaware.profile.model_hash import resolve_model_dir

DEMO_MODEL = ".cache/models/SmolLM2-135M-Instruct"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Split, seed, and what is done with finished runs."""
    parser.add_argument("--split", default="evaluation", choices=["calibration", "evaluation"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="do not use or keep finished runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")


def journal_of(args: argparse.Namespace, profile: HeadProfile) -> Path | None:
    """Where finished runs are kept, unless --fresh."""
    return None if args.fresh else journal_path(profile.model.hash)


def policy_and_profile(
    args: argparse.Namespace, model: str, base: KVPolicyConfig
) -> tuple[Path, KVPolicyConfig, HeadProfile]:
    """The model's folder, headaware's options (flags over `base`), and a profile that fits.

    Raises:
        HeadAwareError: another policy was asked for, or an unusable option, model or profile.
    """
    flags = {name: getattr(args, f"kv_{name}") for name in FIELDS}
    if flags["policy"] not in (None, "headaware"):
        raise HeadAwareError("eval compares headaware with the others; leave --kv-policy out")
    given = {name: value for name, value in flags.items() if value is not None}
    config = make_config({**dataclasses.asdict(base), **given}, args.kv_policy_config)
    folder = Path(resolve_model_dir(model))
    return folder, config, find_profile(folder, config.head_profile)
