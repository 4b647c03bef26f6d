"""Pictures of head scores as SVG text, for pages that need no other file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

# The colours of matplotlib's cividis at equal steps: they stay apart for colour-blind readers.
STOPS = ((0, 34, 78), (66, 78, 108), (124, 123, 120), (186, 174, 108), (254, 232, 56))
CELL, LEFT, BOTTOM = 18, 46, 34


def shade(value: float) -> str:
    """CSS colour of a value from 0 to 1."""
    at = min(max(value, 0.0), 1.0) * (len(STOPS) - 1)
    low = min(int(at), len(STOPS) - 2)
    parts = [round(a + (b - a) * (at - low)) for a, b in zip(*STOPS[low : low + 2], strict=True)]
    return f"rgb({parts[0]},{parts[1]},{parts[2]})"


def head_map(
    rows: Sequence[Sequence[float]],
    colour: Callable[[float], str],
    text: Callable[[float], str],
    label: str,
) -> str:
    """A grid with layers to the right and KV heads downward.

    Args:
        rows: `[layer][KV head]`.
        colour, text: fill and tooltip of a value.
        label: what it shows, for readers who do not see it.
    """
    layers, heads = len(rows), len(rows[0])
    width, height = LEFT + layers * CELL + 8, heads * CELL + BOTTOM
    cells = [
        f'<rect x="{LEFT + y * CELL}" y="{h * CELL}" width="{CELL - 1}" height="{CELL - 1}"'
        f' fill="{colour(value)}"><title>layer {y}, KV head {h}: {escape(text(value))}</title>'
        "</rect>"
        for y, row in enumerate(rows)
        for h, value in enumerate(row)
    ]
    every = max(1, -(-layers // 16))
    ticks = [
        f'<text x="{LEFT + y * CELL + CELL / 2}" y="{heads * CELL + 13}" text-anchor="middle">{y}'
        "</text>"
        for y in range(0, layers, every)
    ]
    ticks += [
        f'<text x="{LEFT - 6}" y="{h * CELL + 13}" text-anchor="end">{h}</text>'
        for h in range(0, heads, max(1, -(-heads // 16)))
    ]
    ticks.append(f'<text x="{LEFT}" y="{height - 5}">layer (down: KV head)</text>')
    return _svg(width, height, label, cells + ticks)


def falling_curve(values: Sequence[float], marks: Sequence[tuple[float, str]], label: str) -> str:
    """Values from the largest to the smallest, as steps.

    Args:
        marks: shares of the heads, 0 to 1, at which a line is drawn, and its words.
    """
    ordered = sorted(values, reverse=True)
    top, count = ordered[0] or 1.0, len(ordered)
    width, height = 520, 150

    def x(share: float) -> float:
        return LEFT + share * (width - LEFT - 8)

    def y(value: float) -> float:
        return 8 + (1 - value / top) * (height - BOTTOM - 8)

    points = [
        f"{x(at / count):.1f},{y(value):.1f}"
        for index, value in enumerate(ordered)
        for at in (index, index + 1)
    ]
    area = f"{x(0)},{y(0)} {' '.join(points)} {x(1)},{y(0)}"
    parts = [f'<polygon points="{area}" class="area"/>']
    for share, words in marks:
        parts.append(f'<line x1="{x(share)}" x2="{x(share)}" y1="8" y2="{y(0)}" class="mark"/>')
        parts.append(f'<text x="{x(share) + 4}" y="18">{escape(words)}</text>')
    parts += [
        f'<text x="{LEFT - 6}" y="14" text-anchor="end">{top:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{y(0)}" text-anchor="end">0</text>',
        f'<text x="{LEFT}" y="{height - 8}">KV heads from best (0 %) to last (100 %)</text>',
    ]
    return _svg(width, height, label, parts)


def loss_curve(points: Sequence[Sequence[float]], bound: float, label: str) -> str:
    """What is lost against how much is kept, with a line at what may be lost.

    Args:
        points: pairs of a share, 0 to 1, and a loss; by share.
        bound: a loss, above 0.
    """
    width, height = 520, 170
    # Beyond a few bounds all losses are too much: those points leave the picture at its top.
    top = min(max(loss for _, loss in points), 8 * bound) or bound

    def x(share: float) -> float:
        return LEFT + share * (width - LEFT - 8)

    def y(loss: float) -> float:
        return 8 + (1 - min(max(loss, 0), top) / top) * (height - BOTTOM - 8)

    line = " ".join(f"{x(share):.1f},{y(loss):.1f}" for share, loss in points)
    parts = [
        f'<polyline points="{line}" class="line"/>',
        *(
            f'<circle cx="{x(share):.1f}" cy="{y(loss):.1f}" r="3.5" class="dot"><title>'
            f"{share:.0%} of the heads: {loss:.3g}</title></circle>"
            for share, loss in points
        ),
        f'<line x1="{x(0)}" x2="{x(1)}" y1="{y(bound):.1f}" y2="{y(bound):.1f}" class="mark"/>',
        f'<text x="{x(1)}" y="{y(bound) - 4:.1f}" text-anchor="end">bound {bound:g}</text>',
        f'<text x="{LEFT - 6}" y="14" text-anchor="end">{top:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{y(0)}" text-anchor="end">0</text>',
        f'<text x="{LEFT}" y="{height - 8}">heads that keep everything, none (0 %) to all</text>',
    ]
    return _svg(width, height, label, parts)


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
