"""Seconds of work: by CUDA events around a graph that is replayed, without a GPU by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` runs; on a GPU of a CUDA graph, so that none waits for Python."""
    if not torch.cuda.is_available():
        return _median([_clocked(work) for _ in range(repeats)])
    graph = graph_of(work)
    return _median([_between_events(graph.replay) for _ in range(repeats)])


def graph_of(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Work captured, after it has run three times on the side."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def _clocked(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _between_events(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
