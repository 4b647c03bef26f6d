"""Run the three phases on several models, and write tables and plots as they are finished."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.eval import phases
from vllm_headaware.eval.measure import open_bench
from vllm_headaware.eval.phases_plot import draw_phases
from vllm_headaware.eval.phases_report import markdown
from vllm_headaware.eval.quick import TEXT_TOKENS
from vllm_headaware.eval.target import FULL_DTYPE, read_target
from vllm_headaware.profile.format import HeadProfile

PHASES = (1, 2, 3)


def run_phases(
    model_dir: Path,
    profile: HeadProfile,
    output: Path,
    *,
    wanted: Sequence[int] = PHASES,
    config: KVPolicyConfig | None = None,
    samples: int = 3,
    texts: int = 2,
    split: str = "evaluation",
    seed: int = 0,
    journal: Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Run phases of one model and write phases.json, phases.md and a plot of each into `output`.

    Args:
        output: folder, made if it does not exist; files of an earlier run are replaced.
        config: headaware's options in phase 1; the serving defaults when None.
        samples: prompts per task; long ones get a third.
        journal: see Journal; a run that was stopped goes on from there.

    Raises:
        OSError: `output` cannot be written.
    """
    started = time.monotonic()
    subject = phases.Subject(read_target(model_dir, profile), samples, texts, split, seed)
    tokens = phases.ABLATION_TOKENS
    parts = phases.ablation_contenders(subject, tokens + phases.NEW_TOKENS)
    text_parts = phases.ablation_contenders(subject, TEXT_TOKENS)
    work: dict[int, phases.Work] = {
        1: phases.lengths_work(subject, config or KVPolicyConfig("headaware")),
        2: phases.budgets_work(subject),
        3: [(task, tokens, parts) for task in phases.BUDGET_TASKS],
    }
    runs = sum(phases.runs_of(work[phase], subject) for phase in wanted)
    runs += texts * len(parts) if 3 in wanted else 0
    report: dict[str, Any] = {
        "model": profile.model.name,
        "split": split,
        "seed": seed,
        "full_dtype": FULL_DTYPE,
        "phases": {},
    }
    output.mkdir(parents=True, exist_ok=True)
    with open_bench(model_dir, journal, runs=runs, progress=progress) as bench:
        for phase in wanted:
            begun = time.monotonic()
            rows = phases.run_work(bench, subject, work[phase])
            result: dict[str, Any] = {"rows": rows}
            if phase == 3 and texts:
                result["text"] = phases.run_text(bench, subject, text_parts)
            result["seconds"] = round(time.monotonic() - begun, 1)
            report["phases"][str(phase)] = result
            report["seconds"] = round(time.monotonic() - started, 1)
            (output / "phases.json").write_text(json.dumps(report, indent=1) + "\n")
            (output / "phases.md").write_text(markdown(report))
            draw_phases(report, output)
    return report
