"""codes -> audio: each row of codes becomes 80 ms of samples.

Carried for each stream: the state of the codec (tts.md section 10) and, on CUDA, the rows that wait for a step of a few
(`frames_together`).  How many rows a step takes follows from their position alone, however they are cut into frames, so
that rounding does not depend on the cutting; only the last rows of a stream go by smaller steps.
Latency: none on the CPU; on CUDA none for the first rows, then up to that of seven rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from voxtral_pipes.config import CodecConfig
from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.codec import Codec, CodecState, frames_together
from voxtral_pipes.models.codes import END_AUDIO, check_row
from voxtral_pipes.stages.base import Hello, Output
from voxtral_pipes.stages.tensors import not_finite, take_codes

NAME, NEEDS = "vx-codec", "codes"

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class CodecStage:
    """The codec as a stage; weights shared by all its streams."""

    codec: Codec
    model: Mapping[str, str] | None = None
    together: int | None = None
    """Rows of a step at most, a power of two; None: what is best on the device."""
    name: str = NAME
    needs: str = NEEDS
    _idle: list[CodecState] = field(default_factory=list)
    """States that streams have left: on CUDA each has its graph, which is dear to make."""

    def hello(self) -> Hello:
        """Describe the output: samples, a row for each frame of codes."""
        return Hello({"audio": {"d": "f32", "h": [-1, self.codec.config.frame_samples]}}, self.model)

    def prepare(self) -> None:
        """Have the step of the first stream ready on CUDA, where the first ones wait for libraries and graphs."""
        if not self._idle:
            state = self.codec.new_state()
            self.codec.warm(state, self._together)
            self._idle.append(state)

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[CodecStream, Mapping[str, Any]]:
        """Begin a stream."""
        state = self._idle.pop() if self._idle else self.codec.new_state()
        state.restart()
        return CodecStream(self.codec, state, self._together, self._idle.append), meta

    @property
    def _together(self) -> int:
        return self.codec.together if self.together is None else self.together


class CodecStream:
    """One stream: the state of the codec, the number of frames decoded, and the rows that are to be decoded next."""

    def __init__(
        self, codec: Codec, state: CodecState, together: int, leave: Callable[[CodecState], None]
    ) -> None:
        """Take a state that nobody else uses; `leave` gets it back."""
        self._codec = codec
        self._state = state
        self._together = together
        self._leave = leave
        self._rows: list[Codes] = []
        self._frames = 0
        self.done = False

    def push(self, frame: Frame) -> Iterator[Output]:
        """Take codes, [n, 37] of any n, up to END_AUDIO; give the samples of each step, float32 [rows, 1920].

        Raises:
            BadInputError: no such codes; the samples of rows before a wrong one have been given.
        """
        rows = self._taken(frame)
        while True:
            try:
                row = next(rows, None)
            except BadInputError:
                yield from self._rest()
                raise
            if row is None:
                break
            self._rows.append(row)
            if len(self._rows) == frames_together(self._frames, self._together):
                yield self._step(len(self._rows))
        if self.done:
            yield from self.flush()

    def _taken(self, frame: Frame) -> Iterator[Codes]:
        """Yield the rows of a data frame up to END_AUDIO's, which makes `done` true."""
        for row in take_codes(frame, _width(self._codec.config)):
            self.done = self._ends(row)
            if self.done:
                return
            yield row

    def mark(self, meta: Mapping[str, Any]) -> None:
        """Pass marks by."""

    def flush(self) -> Iterator[Output]:
        """Give the samples of the rows that are left, by the largest steps they fill: graphs are there for those."""
        yield from self._rest()
        self._leave(self._state)

    def _rest(self) -> Iterator[Output]:
        while self._rows:
            yield self._step(1 << len(self._rows).bit_length() - 1)

    def _step(self, count: int) -> Output:
        """Decode the first `count` of the rows that wait."""
        audio = self.decode(np.stack(self._rows[:count]))
        del self._rows[:count]
        samples = self._codec.config.frame_samples
        output = Output(samples * self._frames, samples * count, {"audio": Tensor.of(audio)})
        self._frames += count
        return output

    def decode(self, rows: Codes) -> npt.NDArray[np.float32]:
        """Decode the next frames, uint16 [n, 37], to float32 [n, 1920]; not clipped."""
        codes = torch.from_numpy(rows.astype(np.int64))
        samples, self._state = self._codec.step(self._state, codes[None])
        audio: npt.NDArray[np.float32] = samples.cpu().numpy().reshape(len(rows), -1)
        if not np.isfinite(audio).all():
            raise not_finite(f"audio frame {self._frames}: the samples are")
        return audio

    def _ends(self, row: Codes) -> bool:
        """Tell whether a row is END_AUDIO's, and refuse one that is neither that nor sound."""
        config, values = self._codec.config, row.tolist()
        try:
            check_row(values, config.semantic_size, config.acoustic_levels, _width(config))
        except BadInputError as error:
            number = self._frames + len(self._rows)
            raise BadInputError(f"audio frame {number}: {error}") from error
        return bool(values[0] == END_AUDIO)


def _width(config: CodecConfig) -> int:
    return 1 + config.acoustic_dim
