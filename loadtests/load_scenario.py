"""A load scenario: what is sent, how fast, and what is good enough. Read from YAML."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtests.conversations import CHUNK_TOKENS, Conversations

CONVERSATIONS = "conversations"
DATASETS = ("random", "prefix_repetition", CONVERSATIONS)


class ScenarioError(Exception):
    """A scenario file that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes:
        dataset: dataset of `vllm bench serve`, whose options stand in `data` without their prefix;
            or "conversations", whose `data` conversations.py describes.
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
        scenario = cls(**{"name": path.stem, **values})
        if values["dataset"] == CONVERSATIONS:
            try:
                requests = Conversations(**values["data"]).requests
            except (TypeError, ValueError) as error:
                raise ScenarioError(f"{path}: data: {error}") from error
            if requests != scenario.requests:
                raise ScenarioError(f"{path}: conversations x turns are {requests} requests")
        return scenario

    def quick(self) -> Scenario:
        """A short form that tries everything: a quarter of the requests, at least two."""
        if self.dataset != CONVERSATIONS:
            return dataclasses.replace(self, requests=max(2, self.requests // 4))
        few = {**self.data, "conversations": 2, "turns": 2}
        return dataclasses.replace(self, data=few, requests=4)

    def write_trace(self, path: Path) -> Path | None:
        """Write the requests as a timed trace, where that is how they are described.

        Returns:
            The path; None for datasets that the load generator makes by itself.
        """
        if self.dataset != CONVERSATIONS:
            return None
        entries = Conversations(**self.data).trace(self.seed)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        return path

    def bench_arguments(
        self, model: str, served_name: str, url: str, trace: Path | None = None
    ) -> list[str]:
        """Arguments of `vllm bench serve`, without where it writes.

        Args:
            trace: what write_trace() returned.
        """
        options: dict[str, Any] = {
            "backend": "openai",
            "base-url": url,
            "model": served_name,
            "tokenizer": model,
            "dataset-name": "timed_trace" if trace else self.dataset,
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
        if trace:
            options |= {
                "dataset-path": trace,
                "timed-trace-chunk-hash-size": CHUNK_TOKENS,
                "timed-trace-sec-multiplier": 0.001,
            }
        else:
            prefix = self.dataset.replace("_", "-")
            options |= {f"{prefix}-{key.replace('_', '-')}": v for key, v in self.data.items()}
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        goodput = [f"ttft:{self.ttft_ms:g}", f"tpot:{self.tpot_ms:g}"]
        return [*arguments, "--ignore-eos", "--goodput", *goodput]
