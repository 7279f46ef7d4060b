"""CUDA graphs: a step of hundreds of small launches becomes one.

At batch 1 a decoder step is bound by the time the CPU takes to launch its kernels, not by the kernels.  A graph
holds addresses, so it belongs to the state whose ring and tails the step writes in place.  Copies from and to the host
are part of it: where several processes share a GPU, each separate submission may wait for its turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

_Key = tuple[tuple[torch.Size, torch.dtype, bool], ...]


@dataclass(slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    staged: tuple[Tensor, ...]
    """What the graph reads: pinned for inputs on the host, else on the device."""
    given: tuple[Tensor, ...]
    """Where it copies that to; outside of the graph's own memory, so it must be kept."""
    output: Tensor
    done: torch.cuda.Event
    """The last replay: what is staged must not change before it."""


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
        captured.done.synchronize()
        for staged, tensor in zip(captured.staged, inputs, strict=True):
            staged.copy_(tensor)
        captured.graph.replay()
        captured.done.record()
        return partial(self._result, captured)

    def _result(self, captured: _Captured) -> Tensor:
        if self._to_host:
            captured.done.synchronize()
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
        pool = next((known.graph.pool() for known in self._captured.values()), None)
        staged = tuple(torch.empty_like(tensor, pin_memory=not tensor.is_cuda) for tensor in inputs)
        given = tuple(torch.empty_like(tensor, device=device) for tensor in inputs)
        host = torch.empty(shape, dtype=dtype, pin_memory=True) if self._to_host else None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            for target, source in zip(given, staged, strict=True):
                target.copy_(source, non_blocking=True)
            output = self._function(*given)
            if host is not None:
                host.copy_(output, non_blocking=True)
        return _Captured(graph, staged, given, output if host is None else host, torch.cuda.Event())
