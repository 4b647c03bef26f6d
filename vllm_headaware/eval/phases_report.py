"""The three phases as Markdown tables."""

from __future__ import annotations

from typing import Any

TITLES = {
    "1": "Phase 1: memory against length",
    "2": "Phase 2: budgets",
    "3": "Phase 3: what each part is worth",
}
NOTES = {
    "1": "StreamingLLM and H2O stay at the bytes that headaware holds of the shortest prompts.",
    "2": "A budget is in tokens per layer, its KV heads together: the baselines give every head its"
    " share, in its KV dtype and whole blocks; headaware holds no more bytes than they do.",
    "3": "Rows with + add one part to the row above; rows with - take one part from headaware.",
}


def markdown(report: dict[str, Any]) -> str:
    """A document with one table per phase; bytes in MB (10^6), scores 0 to 1."""
    parts = [
        f"# {report['model']}",
        f"{report['split'].capitalize()} split, seed {report['seed']}. The full cache is"
        f" {report['full_dtype']}; `bytes` are those of one decoding request.",
    ]
    for phase, result in report["phases"].items():
        parts += [f"## {TITLES[phase]}", NOTES[phase], table(phase, result)]
    return "\n\n".join(parts) + "\n"


def table(phase: str, result: dict[str, Any]) -> str:
    """The rows of a phase, one line per length and method, one column per task."""
    tasks = list(dict.fromkeys(row["task"] for row in result["rows"]))
    text = {row["method"]: row for row in result.get("text", [])}
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    for row in result["rows"]:
        line = lines.setdefault((row["tokens"], row["method"]), {**row, "scores": {}})
        line["scores"][row["task"]] = f"{row['score']:.2f}"
    head = ["tokens", "method", "bytes", "full / held", *tasks, "prompts per task"]
    if text:
        head += ["text KL", "text NLL"]
    body = []
    for line in lines.values():
        cells = [
            f"{line['tokens']:,}",
            line["method"],
            f"{line['bytes'] / 1e6:.2f} MB",
            f"{line['bytes_ratio']:.2f}",
            *(line["scores"].get(task, "") for task in tasks),
            str(line["samples"]),
        ]
        if text:
            own = text[line["method"]]
            cells += [f"{own['kl']:.3f}", f"{own['nll']:.3f}"]
        body.append(cells)
    rule = ["---:" if name != "method" else "---" for name in head]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *body])
