"""Deployment files, each judged by the tool of its kind. Nothing is built or applied here."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.generate import ROOT
from monitoring.scalers import scaler_queries
from tests.monitoring.test_rules import promtool
from vllm_headaware.observability.metric_families import FAMILIES
from vllm_headaware.vllm_compat.contract import SERIES

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BIN = Path(sys.executable).parent
COMPOSE = ("compose.yaml", "compose.gpu.yaml", "router/compose.yaml")
DEPLOYMENTS = ("kubernetes/vllm-headaware.yaml", "kubernetes/vllm-headaware-gpu.yaml")
GPU = ("compose.gpu.yaml", "kubernetes/vllm-headaware-gpu.yaml", "helm/vllm-gpu-values.yaml")
VALUES = ("helm/vllm-values.yaml", "helm/production-stack-values.yaml")


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    program = BIN / str(command[0])
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[deploy]'")
    return subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, check=False, cwd=DEPLOY
    )


def accepted(*command: str | Path) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def strings(value: Any) -> Iterator[str]:
    """Every string in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda", "router/Dockerfile"])
def test_dockerfiles(name: str) -> None:
    accepted("hadolint", name)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_dockerfiles_copy_what_an_installation_needs(name: str) -> None:
    """Without setup.py an image would have no native kernels, and say so only when it serves."""
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / name).read_text(), flags=re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert {"pyproject.toml", "setup.py", "MANIFEST.in", "vllm_headaware"} <= sources
    assert all((ROOT / source).exists() for source in sources)


def test_cuda_image_is_of_the_vllm_we_support() -> None:
    (version,) = re.findall(
        r"^FROM vllm/vllm-openai:v(.+)$", (DEPLOY / "Dockerfile.cuda").read_text(), re.MULTILINE
    )
    assert version.rpartition(".")[0] in SERIES


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files(name: str) -> None:
    accepted("check-jsonschema", "--builtin-schema", "vendor.compose-spec", name)


def test_compose_mounts_what_exists() -> None:
    services = load("compose.yaml")["services"]
    mounts = [volume.split(":")[0] for s in services.values() for volume in s["volumes"]]
    assert all((DEPLOY / mount).exists() for mount in mounts if mount.startswith("./"))
    (target,) = load("prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0][
        "targets"
    ]
    assert target.split(":")[0] in services


def test_the_router_stands_before_the_servers() -> None:
    services = load("router/compose.yaml")["services"]
    workers = [word for word in services["router"]["command"] if word.startswith("http://")]
    assert sorted(worker.split("/")[2] for worker in workers) == [
        f"{name}:8000" for name in services if name != "router"
    ]


def test_the_router_is_the_one_that_was_tried() -> None:
    (version,) = re.findall(r"vllm-router==(\S+)", (DEPLOY / "router" / "Dockerfile").read_text())
    assert f"vllm-router=={version}\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_manifests(name: str) -> None:
    accepted("kubernetes-validate", "--strict", name)


@pytest.mark.parametrize("name", GPU)
def test_gpus_are_asked_for_and_served_with_the_cuda_image(name: str) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    assert "0.1.0-cuda" in text
    assert "nvidia.com/gpu: 1" in text or "driver: nvidia" in text
    assert "--dtype" not in text
    assert "VLLM_CPU" not in text


def test_the_gpu_deployment_is_the_same_but_for_the_device() -> None:
    cpu, gpu = (next(yaml.safe_load_all((DEPLOY / name).read_text())) for name in DEPLOYMENTS)
    for deployment in (cpu, gpu):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        for name in ("image", "args", "env", "resources"):
            container.pop(name, None)
    assert cpu == gpu


@pytest.mark.parametrize("kind", ["podmonitor", "scaledobject"])
def test_custom_resources(kind: str) -> None:
    accepted("check-jsonschema", "--schemafile", f"schemas/{kind}.json", f"kubernetes/{kind}.yaml")


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("podmonitor", "  sampleLimit: 10000", "  samplelimit: 10000"),
        ("podmonitor", "interval: 15s", "interval: 15"),
        ("scaledobject", 'threshold: "5"', "threshold: 5"),
        ("scaledobject", "metricType: Value", "metricType: Utilization"),
    ],
)
def test_the_schemas_find(kind: str, before: str, after: str, tmp_path: Path) -> None:
    text = (KUBERNETES / f"{kind}.yaml").read_text(encoding="utf-8")
    assert before in text
    path = tmp_path / "changed.yaml"
    path.write_text(text.replace(before, after), encoding="utf-8")
    assert run("check-jsonschema", "--schemafile", f"schemas/{kind}.json", path).returncode == 1


def test_custom_resources_mean_the_deployment() -> None:
    """Labels, port and name are those of vllm-headaware.yaml."""
    deployment = next(yaml.safe_load_all((KUBERNETES / "vllm-headaware.yaml").read_text()))
    pod = deployment["spec"]["template"]
    monitor = load("kubernetes/podmonitor.yaml")["spec"]
    labels = monitor["selector"]["matchLabels"].items()
    assert labels <= pod["metadata"]["labels"].items()
    ports = {port["name"] for c in pod["spec"]["containers"] for port in c["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports
    target = load("kubernetes/scaledobject.yaml")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])


def test_the_custom_object_of_the_chart_is_a_pod_monitor(tmp_path: Path) -> None:
    (custom,) = load(VALUES[0])["customObjects"]
    path = tmp_path / "podmonitor.yaml"
    path.write_text(yaml.safe_dump(custom), encoding="utf-8")
    accepted("check-jsonschema", "--schemafile", "schemas/podmonitor.json", path)
    selected = custom["spec"]["selector"]["matchLabels"].items()
    assert selected <= load(VALUES[0])["labels"].items()


def test_the_triggers_of_the_stack_are_kedas(tmp_path: Path) -> None:
    scaler = load("kubernetes/scaledobject.yaml")
    (model,) = load(VALUES[1])["servingEngineSpec"]["modelSpec"]
    scaler["spec"]["triggers"] = model["keda"]["triggers"]
    path = tmp_path / "scaledobject.yaml"
    path.write_text(yaml.safe_dump(scaler), encoding="utf-8")
    accepted("check-jsonschema", "--schemafile", "schemas/scaledobject.json", path)


def test_scalers_ask_for_what_there_is(tmp_path: Path) -> None:
    """promtool parses every query, and every family of ours in them exists."""
    queries = scaler_queries()
    assert len(queries) == 2
    rules = [{"record": f"q{i}", "expr": query} for i, query in enumerate(queries)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "scalers", "rules": rules}]}))
    known = {family.full_name for family in FAMILIES}
    asked = set(re.findall(r"vllm_headaware_\w+", " ".join(queries)))
    assert asked
    assert asked <= known
    promtool("check", "rules", path)


@pytest.mark.parametrize("name", [*COMPOSE, *DEPLOYMENTS, *VALUES, GPU[-1]])
def test_vllm_knows_every_flag(name: str) -> None:
    """Every --flag in a deployment file is one that `vllm serve` has with this plugin."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    known = make_arg_parser(FlexibleArgumentParser())._option_string_actions
    documents = list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))
    documents[0].get("services", {}).pop("router", None)
    given = [text for text in strings(documents) if text.startswith("--")]
    assert "--kv-policy=headaware" in given
    assert [text for text in given if text.split("=")[0] not in known] == []
