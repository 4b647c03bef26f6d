"""What `eval long` found, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_headaware.eval.figure import new_figure

COLOURS = ("#555555", "#00224e", "#b08900", "#a2484b", "#4c7a5b", "#8fa3c8")


def markdown(report: dict[str, Any]) -> str:
    """Tables: nats lost and first choices by kind, then what each side holds."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    names = list(report["scores"])
    full, others = names[0], names[1:]
    lengths = ", ".join(f"{tokens:,}" for tokens in report["lengths"])
    yield (
        f"{report['model']}, {report['split']} split, prompts of {lengths} tokens,"
        f" {report['prompts_of_a_kind']} of a kind, in the engine in {report['dtype']}."
    )
    yield ""
    heads = [f"{full}: loss, first", *(f"{name}: lost, first, exact, KL" for name in others)]
    yield f"| kind | {' | '.join(heads)} |"
    yield "|---" * (1 + len(heads)) + "|"
    for kind, of in report["kinds"].items():
        mark = " (not counted)" if kind in report["unable"] else ""
        cells = [f"{of[full]['loss']:.3f}, {of[full]['first']:.2f}"]
        cells += [
            f"{of[name]['lost']:+.3f}, {of[name]['first']:.2f}, {of[name]['exact']:.2f},"
            f" {of[name]['kl']:.3f}"
            for name in others
        ]
        yield f"| {kind}{mark} | {' | '.join(cells)} |"
    yield ""
    yield "| | first choices of full's | other prompts | bytes | fewer than 16 bit |"
    yield "|---|---|---|---|---|"
    for name, of in report["scores"].items():
        share = "-" if of["relative"] is None else f"{of['relative']:.3f}"
        span = of["relative_interval"]
        between = "-" if span is None else f"{span[0]:.3f} to {span[1]:.3f}"
        size = f"{of['bytes'] / 1e6:.1f} MB"
        yield f"| {name} | {share} | {between} | {size} | {of['fewer_than_16_bit']:.1f} |"


def draw(report: dict[str, Any], path: Path) -> None:
    """First choices against bytes, a point for each kind and side.

    Raises:
        OSError: the file cannot be written.
    """
    figure, (axis,) = new_figure(height=4.4)
    for number, (name, of) in enumerate(report["scores"].items()):
        colour = COLOURS[number % len(COLOURS)]
        kinds = [by[name] for by in report["kinds"].values()]
        x, y = [by["bytes"] / 1e6 for by in kinds], [by["first"] for by in kinds]
        axis.scatter(x, y, s=14, color=colour, alpha=0.5)
        large = ([], []) if of["score"] is None else ([of["bytes"] / 1e6], [of["score"]])
        axis.scatter(*large, s=70, color=colour, label=name)
    axis.set(
        xscale="log",
        ylim=(-0.03, 1.05),
        xlabel="KV bytes that a request holds while it is answered (MB)",
        ylabel="first choices that are right",
    )
    axis.set_title(f"{report['model']}: means large, kinds small", loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", metadata={"Software": "vllm-headaware"})
