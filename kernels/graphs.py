"""CUDA graphs: a step of hundreds of small launches becomes one.

At batch 1 a decoder step is bound by the time the CPU takes to launch its kernels, not by the kernels.  A graph
holds addresses, so it belongs to the state whose ring and tails the step writes in place.  Copies from and to the host
are part of it: where several processes share a GPU, each separate submission may wait for its turn.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import memmove
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

_Key = tuple[tuple[torch.Size, torch.dtype, bool], ...]

ALIGNED = 256
"""Bytes; as memory of the device is, so that kernels find inputs no worse placed than they would be alone."""


@contextmanager
def recording(
    graph: torch.cuda.CUDAGraph,
    *,
    beside: torch.cuda.CUDAGraph | None = None,
    stream: torch.cuda.Stream | None = None,
) -> Iterator[None]:
    """Record into a graph what is launched meanwhile; its memory is that of the one `beside` it, if any.

    Cycles of objects are not collected in that time: pinned memory or a graph that dies in one of them asks the driver
    for what is not allowed during a recording, which ends the process.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=beside.pool() if beside else None, stream=stream):
            yield
    finally:
        if collects:
            gc.enable()


class _Inputs:
    """Where a graph finds its inputs: those from the host side by side, so that one copy brings all of them.

    All memory is outside of the graph's own, so it must be kept.
    """

    def __init__(self, device: torch.device, inputs: tuple[Tensor, ...], pinned: bool = True) -> None:
        starts, size = [], 0
        for tensor in inputs:
            starts.append(size)
            size += 0 if tensor.is_cuda else -(-tensor.nbytes // ALIGNED) * ALIGNED
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._device = torch.empty(size, dtype=torch.uint8, device=device)
        self.given = tuple(
            torch.empty_like(tensor)
            if tensor.is_cuda
            else self._device[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip(starts, inputs, strict=True)
        )
        """What the function gets, on the device."""
        self._targets = tuple(self._host.data_ptr() + start for start in starts)
        """Addresses."""

    def stage(self, inputs: tuple[Tensor, ...]) -> None:
        """Take inputs like the first ones; what the graph reads of them must not change before it is done."""
        for tensor, given, target in zip(inputs, self.given, self._targets, strict=True):
            if tensor.is_cuda:
                given.copy_(tensor)
            else:
                # Less to go through than in `copy_`, which tells where caches are cold.
                tensor = tensor.contiguous()
                memmove(target, tensor.data_ptr(), tensor.nbytes)

    def copy(self) -> None:
        """Bring what has been staged to the device; recorded as part of the graph."""
        self._device.copy_(self._host, non_blocking=True)


@dataclass(slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: _Inputs
    output: Tensor
    done: torch.cuda.Event
    """The last replay."""
    awaited: bool = True
    """Whether it is known to be over."""


class Replayed:
    """A function of tensors, recorded on the second call with like inputs and replayed from then on.

    The function gets its inputs on the device.  It may write in place to tensors it closes over, must not read
    anything back to the host, and must do the same for inputs of the same shapes and dtypes; then a replay computes
    what a call would, bit for bit.  With `to_host` the result comes back on the host.  `ahead` calls may be under way
    at a time: each has a recording of its own.
    """

    def __init__(self, function: Callable[..., Tensor], *, to_host: bool = False, ahead: int = 1) -> None:
        self._function = function
        self._to_host = to_host
        self._ahead = ahead
        self._turn = 0
        self._seen: dict[_Key, tuple[torch.Size, torch.dtype]] = {}
        """What first calls gave."""
        self._captured: dict[tuple[int, _Key], _Captured] = {}

    def __call__(self, device: torch.device, *inputs: Tensor) -> Tensor:
        """Call the function with `inputs`, which may lie on the host; the result is the caller's to keep."""
        return self.start(device, *inputs)()

    def start(self, device: torch.device, *inputs: Tensor) -> Callable[[], Tensor]:
        """Start a call; what is returned waits for its result.  Results are asked for in order."""
        key = self._key(inputs)
        if key not in self._seen:
            # The first call chooses algorithms and fills caches, which must not happen inside a recording.
            result = self._function(*(tensor.to(device) for tensor in inputs))
            self._seen[key] = result.shape, result.dtype
            return (lambda: result.cpu()) if self._to_host else (lambda: result)
        self._turn = (self._turn + 1) % self._ahead
        captured = self._captured.get((self._turn, key))
        if captured is None:
            captured = self._captured[self._turn, key] = self._capture(device, inputs, *self._seen[key])
        if not captured.awaited:
            captured.done.synchronize()
        captured.inputs.stage(inputs)
        captured.graph.replay()
        captured.done.record()
        captured.awaited = False
        return partial(self._result, captured)

    def _result(self, captured: _Captured) -> Tensor:
        if self._to_host:
            captured.done.synchronize()
            captured.awaited = True
        return captured.output.clone()

    def knows(self, *inputs: Tensor) -> bool:
        """Tell whether inputs like these have been recorded."""
        return self._key(inputs) in {key for _, key in self._captured}

    @staticmethod
    def _key(inputs: tuple[Tensor, ...]) -> _Key:
        return tuple((tensor.shape, tensor.dtype, tensor.is_cuda) for tensor in inputs)

    def _capture(
        self, device: torch.device, inputs: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype
    ) -> _Captured:
        """Record one call, whose result is of that shape and dtype; recording computes nothing."""
        beside = next((known.graph for known in self._captured.values()), None)
        placed = _Inputs(device, inputs)
        host = torch.empty(shape, dtype=dtype, pin_memory=True) if self._to_host else None
        graph = torch.cuda.CUDAGraph()
        with recording(graph, beside=beside):
            placed.copy()
            output = self._function(*placed.given)
            if host is not None:
                host.copy_(output, non_blocking=True)
        return _Captured(graph, placed, output if host is None else host, torch.cuda.Event())
