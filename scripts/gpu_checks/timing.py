"""Times of device work: CUDA events around replays of a graph of many launches, medians of many replays."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from gpu_checks.check import Check

_REPLAYS = 15
# A replay itself costs some microseconds: among so many launches they are nothing.
_LAUNCHES = 100


def graph_ms(
    check: Check, launches: Sequence[Callable[[], object]], *, at_least: int = _LAUNCHES, replays: int = _REPLAYS
) -> float | None:
    """Milliseconds of one launch.

    Args:
        check: says whether anything is timed at all; where nothing is, one launch is run.
        launches: the same work on inputs of its own each: together several times the L2, so that memory is measured
            and not the cache. They are captured one after the other, again from the start until `at_least` are.

    Returns:
        the median over replays, divided by the launches; None where nothing is timed.
    """
    if check.tiny:
        launches[0]()
        return None
    count = max(at_least, len(launches))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for launch in launches:
            launch()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        # Not `torch.cuda.graph`, which collects garbage first: a sweep captures hundreds.
        graph.capture_begin()
        try:
            for i in range(count):
                launches[i % len(launches)]()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    for _ in range(2):
        graph.replay()
    return statistics.median(_event_ms(graph.replay) for _ in range(replays)) / count


def eager_ms(launches: Sequence[Callable[[], object]], *, tries: int = 10, best: bool = False) -> float:
    """Milliseconds of one launch, outside of a graph: for work so long that a launch's own cost is nothing.

    Args:
        best: the fastest try instead of the median, for peaks.
    """
    for launch in launches[:2]:
        launch()
    times = [_event_ms(launches[i % len(launches)]) for i in range(tries)]
    return min(times) if best else statistics.median(times)


def num_sets(check: Check, num_bytes: int, most: int = 64) -> int:
    """How many sets of inputs of so many bytes make eight times the L2."""
    if check.tiny:
        return 1
    l2_bytes = torch.cuda.get_device_properties(check.device).L2_cache_size
    return max(2, min(most, -(-8 * l2_bytes // max(1, num_bytes))))


def _event_ms(work: Callable[[], object]) -> float:
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun.record()
    work()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended)
