"""The PromQL that KEDA would ask, out of the deployment files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
MODEL_NAME = 'model_name="model"'
"""The selector those files use; their servers are started with --served-model-name=model."""


def scaler_queries(model_name: str = "model") -> list[str]:
    """Every distinct query of a trigger, for a model of that name."""
    scaler = _load("kubernetes/scaledobject.yaml")["spec"]
    stack = _load("helm/production-stack-values.yaml")["servingEngineSpec"]["modelSpec"]
    triggers = scaler["triggers"] + [t for model in stack for t in model["keda"]["triggers"]]
    queries = dict.fromkeys(trigger["metadata"]["query"] for trigger in triggers)
    return [query.replace(MODEL_NAME, f'model_name="{model_name}"') for query in queries]


def _load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
