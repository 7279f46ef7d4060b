"""Steps of a training: as they come, or, where all inputs have one shape, on CUDA replayed as one graph.

A step of so small a model is some thousand launches, each of them shorter than it takes to ask for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nano.tts_state import Training
from voxtral_pipes.kernels.graphs import recording

Terms = dict[str, Tensor]
Loss = Callable[[Tensor, torch.Generator], tuple[Tensor, Terms]]
_EAGER = 3
"""Steps taken before one is recorded: libraries make their plans in them, and tables are computed."""


class Descent:
    """Takes steps on inputs of one shape; `loss` draws from nothing but its generator and waits for nothing."""

    def __init__(self, training: Training, loss: Loss) -> None:
        self._training, self._loss = training, loss
        self._device = next(iter(training.weights.values())).device
        self._draw = torch.Generator(self._device)
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream() if self._device.type == "cuda" else None
        self._samples = torch.empty(0)
        self._terms: Terms = {}

    def __call__(self, samples: Tensor, seed: int) -> Terms:
        """Take one step on host `samples`, with what the seed draws; return the parts of the loss, on the device.

        They are overwritten by the next step.
        """
        training = self._training
        training.set_rate()
        self._draw.manual_seed(seed)
        if self._stream is None:
            self._terms = self._take(samples)
        else:
            self._on_cuda(samples, self._stream)
        training.step += 1
        return self._terms

    def _on_cuda(self, samples: Tensor, stream: torch.cuda.Stream) -> None:
        if not self._taken:
            self._samples = samples.to(self._device)
        else:
            self._samples.copy_(samples)
        self._taken += 1
        if self._taken <= _EAGER:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._terms = self._take(self._samples)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self._draw)
            self._training.optimiser.zero_grad(set_to_none=True)
            with recording(graph, stream=stream):
                self._terms = self._take(self._samples)
            self._graph = graph
        self._graph.replay()

    def _take(self, samples: Tensor) -> Terms:
        value, terms = self._loss(samples, self._draw)
        self._training.descend(value)
        return terms
