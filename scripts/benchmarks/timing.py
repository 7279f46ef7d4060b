"""How long calls take whose weights come from memory, and how fast that memory is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.report import median, synchronize
from voxtral_pipes.kernels.graphs import recording

Call = Callable[[], object]
COPIED_BYTES = 1 << 30
"""On CUDA: less is not enough to reach the memory's full speed."""
GRAPH_CALLS = 32
"""Calls in a graph, at least: what it takes to start one is spread over them."""


def seconds_each(calls: Sequence[Call], device: torch.device, repeats: int) -> float:
    """Return the median seconds of a call, over `repeats` runs through all calls one after the other.

    On CUDA the calls are one graph, and events on the device take the time.
    """
    for call in calls:  # the first of each kind compiles, chooses algorithms and fills caches
        call()
    if device.type == "cuda":
        return _graph_seconds(calls, device, repeats)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for call in calls:
            call()
        times.append((time.perf_counter() - started) / len(calls))
    return median(times)


def _graph_seconds(calls: Sequence[Call], device: torch.device, repeats: int) -> float:
    rounds = -(-GRAPH_CALLS // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        synchronize(device)
        with recording(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        times = []
        for number in range(repeats + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if number:  # the first replay uploads the graph
                times.append(begin.elapsed_time(end) / 1e3 / (rounds * len(calls)))
    return median(times)


def memory_speed(device: torch.device, size: int, repeats: int) -> float:
    """Return bytes a second: on CUDA of a copy, read and written; on the CPU of reading, by all threads of torch.

    `size` is what is read at a time on the CPU, in bytes.
    """
    if device.type == "cpu":
        source = torch.ones(size // 4)
        return source.nbytes / seconds_each([source.sum], device, repeats)
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    # By a kernel: a plain copy in a graph is left to a copy engine, which takes half as long again.
    return 2 * source.nbytes / seconds_each([lambda: torch.neg(source, out=target)], device, repeats)
