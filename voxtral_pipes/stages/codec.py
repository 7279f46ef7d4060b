"""codes -> audio: each row of codes becomes its samples at once.  Latency: none.

Carried for each stream: the state of the codec (tts.md section 10).  Rows are decoded one at a time, however they
are cut into frames, so that rounding does not depend on the cutting.
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
from voxtral_pipes.models.codec import Codec, CodecState
from voxtral_pipes.models.codes import END_AUDIO, check_row
from voxtral_pipes.stages.base import Hello, Output
from voxtral_pipes.stages.tensors import take_codes

NAME, NEEDS = "vx-codec", "codes"

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class CodecStage:
    """The codec as a stage; weights shared by all its streams."""

    codec: Codec
    model: Mapping[str, str] | None = None
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
            self.codec.warm(state)
            self._idle.append(state)

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[CodecStream, Mapping[str, Any]]:
        """Begin a stream."""
        state = self._idle.pop() if self._idle else self.codec.new_state()
        state.restart()
        return CodecStream(self.codec, state, self._idle.append), meta


class CodecStream:
    """One stream: the state of the codec and the number of frames decoded."""

    def __init__(self, codec: Codec, state: CodecState, leave: Callable[[CodecState], None]) -> None:
        """Take a state that nobody else uses; `leave` gets it back."""
        self._codec = codec
        self._state = state
        self._leave = leave
        self._frames = 0
        self.done = False

    def push(self, frame: Frame) -> Iterator[Output]:
        """Take codes, [n, 37] of any n; give the samples of each row, float32 [1, 1920], up to END_AUDIO.

        Raises:
            BadInputError: no such codes; rows before a wrong one have been given.
        """
        samples = self._codec.config.frame_samples
        for row in take_codes(frame, _width(self._codec.config)):
            self.done = self._ends(row)
            if self.done:
                self._leave(self._state)
                return
            audio = self.decode(row)
            yield Output(samples * self._frames, samples, {"audio": Tensor.of(audio)})
            self._frames += 1

    def mark(self, meta: Mapping[str, Any]) -> None:
        """Pass marks by."""

    def flush(self) -> Iterator[Output]:
        """Give nothing: every row has been decoded at once."""
        self._leave(self._state)
        yield from ()

    def decode(self, row: Codes) -> npt.NDArray[np.float32]:
        """Decode the next frame, uint16 [37], to float32 [1, 1920]; not clipped."""
        codes = torch.from_numpy(row.astype(np.int64))
        samples, self._state = self._codec.step(self._state, codes[None, None])
        audio: npt.NDArray[np.float32] = samples.cpu().numpy()
        if not np.isfinite(audio).all():
            raise BadInputError(
                f"audio frame {self._frames}: the samples are not finite: the weights are damaged, or --dtype f32 is "
                "needed"
            )
        return audio

    def _ends(self, row: Codes) -> bool:
        """Tell whether a row is END_AUDIO's, and refuse one that is neither that nor sound."""
        config, values = self._codec.config, row.tolist()
        try:
            check_row(values, config.semantic_size, config.acoustic_levels, _width(config))
        except BadInputError as error:
            raise BadInputError(f"audio frame {self._frames}: {error}") from error
        return bool(values[0] == END_AUDIO)


def _width(config: CodecConfig) -> int:
    return 1 + config.acoustic_dim
