"""hidden states -> codes: a row of 37 for every 80 ms, to the codec on the pipe and back to the backbone.

Frames do not depend on each other, so a frame's codes are the same however the input was cut and whatever else
shares the pipe: the noise is drawn from seed, stream and frame alone.  Latency: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voxtral_pipes.config import GUIDANCE, TTS_FRAME_TICKS, TTS_RATE_HZ, FlowConfig
from voxtral_pipes.errors import BadInputError, VoxError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.codes import END_AUDIO, check_row
from voxtral_pipes.models.noise import frame_noise
from voxtral_pipes.stages.base import Hello, Output


class Back(Protocol):
    """The way back to the backbone; what is sent where nobody listens is lost."""

    def send(self, stream: int, frame: int, row: Sequence[int]) -> None:
        """Answer one hidden state with its codes."""

    def stop(self, stream: int) -> None:
        """Ask for no more of a stream."""


class Sampler(Protocol):
    """The flow head; made when hello is out, because torch takes a second to import."""

    def __call__(self, hidden: Any, noise: npt.NDArray[np.float32], *, allow_end: bool = True) -> list[int]:
        """Turn one hidden state [1, dim] into a row of codes."""


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """What the user may choose."""

    steps: int = 7
    guidance: float = GUIDANCE
    seed: int = 0
    noise: npt.NDArray[np.float32] | None = None
    """[frames, acoustic_dim] instead of what the seed would give; for one stream."""
    no_empty: bool = False
    """The model must not end at frame 0."""


class FlowStage:
    """The flow head as a stage; weights shared by all its streams."""

    name, needs = "vx-flow", "hidden"

    def __init__(
        self,
        config: FlowConfig,
        options: FlowOptions,
        load: Callable[[], Sampler],
        back: Back,
        model: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.options = options
        self.back = back
        self._load = load
        self._model = model
        self._sampler: Sampler | None = None
        self._opened = 0

    def hello(self) -> Hello:
        """Describe the output: rows of codes."""
        codes = {"d": "u16", "h": [-1, 1 + self.config.acoustic_dim]}
        return Hello({"codes": codes}, self._model, ticks_hz=TTS_RATE_HZ)

    def prepare(self) -> None:
        """Load the model."""
        self._sampler = self._load()

    @property
    def sampler(self) -> Sampler:
        """The model; there once `prepare` is done."""
        assert self._sampler is not None
        return self._sampler

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[FlowStream, Mapping[str, Any]]:
        """Begin a stream."""
        self._opened += 1
        options = self.options
        made = {"steps": options.steps, "cfg": options.guidance}
        if options.noise is None:
            made["seed"] = options.seed
        return FlowStream(self, stream, self._opened), {**meta, **made}


class FlowStream:
    """One stream: the number of its next frame."""

    def __init__(self, stage: FlowStage, stream: int, number: int) -> None:
        self._stage = stage
        self._stream = stream
        self._number = number
        self._frame = 0
        self._drawn: tuple[int, npt.NDArray[np.float32]] | None = None
        """A frame and its noise, drawn ahead of its hidden state."""
        self.done = False

    def push(self, frame: Frame) -> Iterator[Output]:
        """Take hidden states [n, dim]; give a row of codes for each, until END_AUDIO, which goes out too."""
        try:
            yield from self._push(frame)
        except VoxError:
            self._stage.back.stop(self._stream)
            raise

    def mark(self, meta: Mapping[str, Any]) -> None:
        """Pass marks by."""

    def flush(self) -> Iterator[Output]:
        """Give nothing: every state has been answered at once."""
        return iter(())

    def _push(self, frame: Frame) -> Iterator[Output]:
        from voxtral_pipes.stages.tensors import take_rows  # imports torch, which must not delay hello

        rows = take_rows(frame, "hidden", self._stage.config.input_dim)
        for at in range(len(rows)):
            if self.done:
                return
            allow_end = self._frame > 0 or not self._stage.options.no_empty
            # One row a time: a product of other shape would round otherwise.
            row = self._stage.sampler(rows[at : at + 1], self._noise(), allow_end=allow_end)
            self._check(row)
            self._stage.back.send(self._stream, self._frame, row)
            self.done = row[0] == END_AUDIO
            tick = TTS_FRAME_TICKS * self._frame
            self._frame += 1
            yield Output(tick, TTS_FRAME_TICKS, {"codes": Tensor.of(np.array([row], dtype=np.uint16))})
            self._draw()  # while the backbone is at work

    def _check(self, row: Sequence[int]) -> None:
        config = self._stage.config
        try:
            check_row(row, config.semantic_size, config.acoustic_levels, 1 + config.acoustic_dim)
        except BadInputError as error:
            raise BadInputError(
                f"frame {self._frame} gives no codes: the weights are damaged, or the hidden state is far too large "
                f"({error})"
            ) from error

    def _draw(self) -> None:
        options = self._stage.options
        if options.noise is None:
            width = self._stage.config.acoustic_dim
            self._drawn = self._frame, frame_noise(options.seed, self._stream, self._frame, width)

    def _noise(self) -> npt.NDArray[np.float32]:
        options = self._stage.options
        if options.noise is None:
            if self._drawn is None or self._drawn[0] != self._frame:
                self._draw()
            assert self._drawn is not None
            return self._drawn[1]
        if self._number > 1:
            # Not said when the stream is opened: vx-backbone may still be waiting for codes of another one.
            raise BadInputError(
                "--noise is for one stream, and this is another; give one utterance, or use --seed"
            )
        if self._frame >= len(options.noise):
            raise BadInputError(
                f"--noise has {len(options.noise)} rows, and frame {self._frame} needs one more"
            )
        row: npt.NDArray[np.float32] = options.noise[self._frame]
        return row
