"""Frames for vx-peek, and what it shows of them; imported by name, not collected."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from id_streams import hello

from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.collect import NpzCollector
from voxtral_pipes.stages.base import Hello, Outgoing, Output
from voxtral_pipes.stages.peek import Collector, Peek


class Seen:
    """Runs vx-peek over frames and keeps what it shows and reports."""

    def __init__(self, frames: Iterable[Frame], *collectors: Collector) -> None:
        self.kinds: list[str] = []
        self.rates: list[int | None] = []
        self.reported: list[str] = []
        peek = Peek(self._show, self.reported.append, collectors)
        peek.run(frames)
        self.problems = peek.problems

    def _show(self, frame: Frame, rate_hz: int | None) -> None:
        self.kinds.append(frame.kind)
        self.rates.append(rate_hz)


def tensor(values: Any, dtype: Any = np.float32) -> Tensor:
    return Tensor.of(np.array(values, dtype))


def bf16(words: Any) -> Tensor:
    return Tensor.of(np.array(words, np.uint16), "bf16")


def mels(n_frames: int, *, stream: int = 0, per_frame: int = 8, bins: int = 16) -> list[Frame]:
    """Make the frames of one stream of mel spectrograms, the rows of which count up."""
    outgoing = Outgoing("vx-mel")
    values = np.arange(n_frames * per_frame, dtype=np.float32)[:, None] + np.zeros(bins, np.float32)
    frames = [
        outgoing.hello(Hello({"mel": {"d": "f32", "h": [-1, bins]}}), 16000),
        outgoing.open(stream, {"source": "$a.wav"}),
    ]
    for at in range(n_frames):
        rows = values[at * per_frame : (at + 1) * per_frame]
        frames.append(
            outgoing.data(
                stream, Output(160 * per_frame * (at - 2), 160 * per_frame, {"mel": Tensor.of(rows)})
            )
        )
    return [*frames, outgoing.end(stream), Frame("end")]


def codes(*semantic: int, acoustic: int = 5, dtype: Any = np.uint16) -> Tensor:
    """Make a row of codes for each semantic one."""
    rows = np.full((len(semantic), 37), acoustic, dtype)
    rows[:, 0] = semantic
    return Tensor.of(rows)


def load(collector: NpzCollector) -> dict[str, Any]:
    """Return the arrays of the .npz as it is written now."""
    file = io.BytesIO()
    collector.write(file)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def speech(values: Iterable[Mapping[str, Tensor]]) -> list[Frame]:
    """Make the frames of one stream of speech synthesis, 80 ms each."""
    outgoing = Outgoing("vx-test")
    frames = [hello(("x",), 24000), outgoing.open(0, {})]
    frames += [outgoing.data(0, Output(1920 * at, 1920, each)) for at, each in enumerate(values)]
    return [*frames, outgoing.end(0), Frame("end")]
