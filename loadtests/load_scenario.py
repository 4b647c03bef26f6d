"""A load scenario: what is sent, how fast, and what is good enough. Read from YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DATASETS = ("random", "prefix_repetition")


class ScenarioError(Exception):
    """A scenario file that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes:
        dataset: dataset of `vllm bench serve`; its options stand in `data`, without their prefix.
        requests, warmups: how many are sent; warm-ups are not measured.
        rate: requests per second (Poisson arrivals); None sends all at once.
        concurrency: most requests in flight; None is no limit.
        ttft_ms, tpot_ms: what a good request needs at most, in milliseconds.
        goodput_share: share (0 to 1) of requests that must be good.
        kv_gib: KV memory of the server, in GiB; the same for every server that is compared.
    """

    name: str
    description: str
    dataset: str
    data: dict[str, Any]
    requests: int
    seed: int
    ttft_ms: float
    tpot_ms: float
    goodput_share: float
    kv_gib: int
    warmups: int = 1
    rate: float | None = None
    concurrency: int | None = None

    @classmethod
    def load(cls, path: str | Path) -> Scenario:
        """Read a file.

        Raises:
            ScenarioError: no such file, no YAML mapping, or keys that are missing or unknown.
        """
        path = Path(path)
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
            raise ScenarioError(f"no scenario {path}; in that folder: {known}")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ScenarioError(f"{path} is not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ScenarioError(f"{path} must be a mapping")
        fields = dataclasses.fields(cls)
        unknown = sorted(values.keys() - {f.name for f in fields})
        missing = [
            f.name
            for f in fields
            if f.default is dataclasses.MISSING and f.name not in values and f.name != "name"
        ]
        if unknown or missing:
            raise ScenarioError(f"{path}: unknown keys {unknown}, missing keys {missing}")
        if values["dataset"] not in DATASETS:
            raise ScenarioError(f"{path}: dataset must be one of {', '.join(DATASETS)}")
        return cls(**{"name": path.stem, **values})

    def bench_arguments(self, model: str, served_name: str, url: str) -> list[str]:
        """Arguments of `vllm bench serve`, without where it writes."""
        options: dict[str, Any] = {
            "backend": "openai",
            "base-url": url,
            "model": served_name,
            "tokenizer": model,
            "dataset-name": self.dataset,
            "num-prompts": self.requests,
            "num-warmups": self.warmups,
            "seed": self.seed,
            "request-rate": "inf" if self.rate is None else self.rate,
            "temperature": 0,
            "percentile-metrics": "ttft,tpot,itl,e2el",
            "metric-percentiles": "50,90,99",
        }
        if self.concurrency:
            options["max-concurrency"] = self.concurrency
        prefix = self.dataset.replace("_", "-")
        options |= {f"{prefix}-{key.replace('_', '-')}": v for key, v in self.data.items()}
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        goodput = [f"ttft:{self.ttft_ms:g}", f"tpot:{self.tpot_ms:g}"]
        return [*arguments, "--ignore-eos", "--goodput", *goodput]
