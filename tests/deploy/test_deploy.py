"""Deployment files, each judged by the tool of its kind. Nothing is built or applied here."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from monitoring.generate import ROOT
from vllm_headaware.config import FIELDS

DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    program = BIN / str(command[0])
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[deploy]'")
    return subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, check=False, cwd=DEPLOY
    )


def test_dockerfile() -> None:
    done = run("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_file() -> None:
    schema = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = run(*schema, "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_mounts_what_exists() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounts = [volume.split(":")[0] for s in services.values() for volume in s["volumes"]]
    assert all((DEPLOY / mount).exists() for mount in mounts if mount.startswith("./"))
    (target,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ][0]["static_configs"][0]["targets"]
    assert target.split(":")[0] in services


def test_manifests() -> None:
    done = run("kubernetes-validate", "--strict", "kubernetes/vllm-headaware.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_flags_are_ours_or_vllms() -> None:
    """Every --kv-... flag in a deployment file is one the plugin has."""
    known = {"--kv-" + name.replace("_", "-") for name in FIELDS}
    for path in (DEPLOY / "compose.yaml", DEPLOY / "kubernetes" / "vllm-headaware.yaml"):
        given = [word for word in path.read_text().split() if word.startswith("--kv-")]
        assert given
        assert {word.split("=")[0] for word in given} <= known
