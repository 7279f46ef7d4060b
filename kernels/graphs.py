"""CUDA graphs: a step of hundreds of small launches becomes one.

At batch 1 a decoder step is bound by the time the CPU takes to launch its kernels, not by the kernels.  A graph
holds addresses, so it belongs to the state whose ring and tails the step writes in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Replayed:
    """A function of CUDA tensors, recorded on the second call with like inputs and replayed from then on.

    The function may write in place to tensors it closes over, must not read anything back to the host, and must
    do the same for inputs of the same shapes and dtypes; then a replay computes what a call would, bit for bit.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._captured: dict[tuple[tuple[torch.Size, torch.dtype], ...], _Captured | None] = {}

    def __call__(self, device: torch.device, *inputs: Tensor) -> Tensor:
        """Call the function with `inputs`, which may lie on the host; the result is the caller's to keep."""
        key = self._key(inputs)
        if key not in self._captured:
            # The first call chooses algorithms and fills caches, which must not happen inside a recording.
            self._captured[key] = None
            return self._function(*(tensor.to(device) for tensor in inputs))
        captured = self._captured[key]
        if captured is None:
            captured = self._capture(tuple(tensor.to(device, copy=True) for tensor in inputs))
            self._captured[key] = captured
        else:
            for static, tensor in zip(captured.inputs, inputs, strict=True):
                static.copy_(tensor)
        captured.graph.replay()
        return captured.output.clone()

    def knows(self, *inputs: Tensor) -> bool:
        """Tell whether inputs like these have been recorded."""
        return self._captured.get(self._key(inputs)) is not None

    @staticmethod
    def _key(inputs: tuple[Tensor, ...]) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        return tuple((tensor.shape, tensor.dtype) for tensor in inputs)

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured:
        """Record one call; recording computes nothing."""
        pool = next((known.graph.pool() for known in self._captured.values() if known), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = self._function(*inputs)
        return _Captured(graph, inputs, output)
