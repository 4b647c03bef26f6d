"""How far a simultaneous writer lags behind its source: wait-k, AL and LAAL."""

from __future__ import annotations

from collections.abc import Sequence


def wait_k(k: int, num_source: int, num_target: int) -> list[int]:
    """Source tokens that have been read when each target token is written (arXiv 1810.08398).

    First k are read, then one is read for every one that is written, until the source ends.

    Raises:
        ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"wait-k needs k of at least 1, got {k}")
    return [min(k + t, num_source) for t in range(num_target)]


def average_lagging(
    reads: Sequence[int], num_source: int, num_reference: int | None = None
) -> float:
    """AL (arXiv 1810.08398): tokens that a writer is behind one that keeps an even pace.

    Args:
        reads: source tokens read before each written token, not falling.
        num_source: tokens of the whole source, at least 1.
        num_reference: target tokens that set the pace; as many as were written when None.

    Returns:
        Mean over the written tokens up to the first for which the whole source had been read.

    Raises:
        ValueError: nothing written, or no source.
    """
    return _lagging(reads, num_source, len(reads) if num_reference is None else num_reference)


def length_adaptive_average_lagging(
    reads: Sequence[int], num_source: int, num_reference: int
) -> float:
    """LAAL (arXiv 2206.05807): AL that does not fall when more is written than the reference has.

    Its pace is that of the longer of the two; arguments as for average_lagging().
    """
    return _lagging(reads, num_source, max(len(reads), num_reference))


def _lagging(reads: Sequence[int], num_source: int, num_target: int) -> float:
    if not reads or num_source < 1 or num_target < 1:
        raise ValueError(f"no lag of {len(reads)} target tokens on {num_source} source tokens")
    last = next((t for t, read in enumerate(reads) if read >= num_source), len(reads) - 1)
    pace = num_source / num_target
    return sum(read - t * pace for t, read in enumerate(reads[: last + 1])) / (last + 1)
