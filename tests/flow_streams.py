"""Streams of hidden states and of codes round vx-flow's stage, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from hypothesis import settings as runs
from tts_models import SMALL_FLOW, flow_tensors, random_rows

from voxtral_pipes.formats.frame import Frame, encode
from voxtral_pipes.models.codes import END_AUDIO
from voxtral_pipes.models.flow import Flow, Sampler
from voxtral_pipes.stages.base import Drive, Hello, Outgoing, Output
from voxtral_pipes.stages.flow import FlowOptions, FlowStage
from voxtral_pipes.stages.tensors import send_rows

FLOW = SMALL_FLOW
WIDTH = 1 + FLOW.acoustic_dim
PLAIN = FlowOptions(steps=3, seed=7)
END_ROW = [END_AUDIO] + [2] * FLOW.acoustic_dim
quick = runs(max_examples=15, deadline=None)


class Answered:
    """Remembers what vx-flow sends back."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int, list[int]]] = []
        self.stopped: list[int] = []

    def send(self, stream: int, frame: int, row: Sequence[int]) -> None:
        self.sent.append((stream, frame, list(row)))

    def stop(self, stream: int) -> None:
        self.stopped.append(stream)


@cache
def sampler(steps: int, guidance: float) -> Sampler:
    return Sampler(Flow.of(dict(flow_tensors(FLOW)), FLOW), steps, guidance)


def flow_stage(options: FlowOptions = PLAIN, back: Any = None) -> FlowStage:
    return FlowStage(
        FLOW, options, lambda: sampler(options.steps, options.guidance), Answered() if back is None else back
    )


def hidden_of(rows: torch.Tensor, cuts: Iterable[int] = (), stream: int = 0) -> list[Frame]:
    """Cut rows into the data frames of one stream, from open to end."""
    outgoing = Outgoing("vx-backbone")
    frames = [outgoing.open(stream, {"voice": "test"})]
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(rows)}), len(rows)]
    for first, last in pairwise(edges):
        part = Output(1920 * first, 1920 * (last - first), {"hidden": send_rows(rows[first:last])})
        frames.append(outgoing.data(stream, part))
    return [*frames, outgoing.end(stream)]


def pipe(name: str, frames: Iterable[Frame]) -> Iterator[Frame]:
    yield Outgoing("test").hello(Hello({name: {"d": "f32", "h": [-1]}}), 24000)
    yield from frames
    yield Frame("end")


def codes(
    frames: Iterable[Frame], options: FlowOptions = PLAIN, back: Any = None, report: Any = lambda line: None
) -> list[Frame]:
    return list(Drive(flow_stage(options, back), pipe("hidden", frames), report).run())


def of(frames: Iterable[Frame], stream: int) -> bytes:
    return b"".join(encode(frame) for frame in frames if frame.stream == stream)


def rows_of(frames: Iterable[Frame], stream: int = 0, name: str = "codes") -> list[list[int]]:
    data = [frame for frame in frames if frame.kind == "data" and frame.stream == stream]
    return [row for frame in data for row in frame.tensors[name].numpy().tolist()]


@cache
def hidden(seed: int = 11, n: int = 20) -> torch.Tensor:
    return random_rows(n, FLOW.input_dim, seed)
