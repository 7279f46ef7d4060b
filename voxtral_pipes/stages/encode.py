"""mel -> embeds: buffers mel frames to whole steps and runs the encoder.

Latency: none beyond the step.  A live stream is stepped by one embedding (80 ms), except the silence in front of
the audio, which is there at once; a file by 2560 ms.  Step sizes follow from position and options alone, never
from how the input was cut, so the output bytes do not depend on it either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from voxtral_pipes.config import AsrConfig
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.encode import Encoder, EncoderState
from voxtral_pipes.stages.base import Hello, Output
from voxtral_pipes.stages.settings import StreamSettings
from voxtral_pipes.stages.tensors import DAMAGED, WIRE_OF, send_computed, take_rows, take_vector

MAX_STEP_TOKENS = 32
"""Embeddings per step of a file (2560 ms), and of the left padding of a live stream."""


@dataclass(frozen=True, slots=True)
class EncodeStage:
    """The encoder as a stage; weights shared by all its streams."""

    encoder: Encoder
    config: AsrConfig
    model: Mapping[str, str] | None = None
    chunk_tokens: int | None = None
    """Embeddings per step; None: 1 if the stream is live, else 32."""
    name: str = "vx-encode"
    needs: str = "mel"
    _idle: list[EncoderState] = field(default_factory=list)
    """States that streams have left: on CUDA each has its graphs, which are dear to make."""

    def hello(self) -> Hello:
        """Describe the output: `embeds` and, where the input has it, `level`."""
        embeds = {"d": WIRE_OF[self.encoder.dtype], "h": [-1, self.config.decoder.dim]}
        return Hello(
            {"embeds": embeds, "level": {"d": "f32", "h": [-1]}},
            self.model,
            ticks_hz=self.config.audio.rate_hz,
        )

    def prepare(self) -> None:
        """Have the steps of the first stream ready on CUDA, where the first ones wait for libraries and graphs."""
        if not self._idle:
            state, chunk = self._new_state(), self.chunk_tokens
            self.encoder.warm(state, *((1, MAX_STEP_TOKENS) if chunk is None else (chunk,)))
            self._idle.append(state)

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[EncodeStream, Mapping[str, Any]]:
        """Begin a stream."""
        settings = StreamSettings.of(meta, self.config.audio)
        state = self._idle.pop() if self._idle else self._new_state()
        state.restart()
        return EncodeStream(self, settings, state, self._idle.append), meta

    def _new_state(self) -> EncoderState:
        return self.encoder.new_state(max(self.chunk_tokens or 1, MAX_STEP_TOKENS))


class EncodeStream:
    """One stream: mel frames and levels not yet used, and the encoder's state."""

    done = False

    def __init__(
        self,
        stage: EncodeStage,
        settings: StreamSettings,
        state: EncoderState,
        leave: Callable[[EncoderState], None],
    ) -> None:
        """Take a state that nobody else uses; `leave` gets it back."""
        self._encoder = stage.encoder
        self._state = state
        self._leave = leave
        self._audio = stage.config.audio
        self._settings = settings
        self._chunk = stage.chunk_tokens or (1 if settings.live else MAX_STEP_TOKENS)
        self._lead = settings.left_pad_tokens if settings.live and stage.chunk_tokens is None else 0
        self._mel = torch.empty(0, stage.encoder.config.n_mels)
        self._levels: list[float] | None = []
        """None once a step had no level for each of its embeddings: the rest would not line up."""

    def push(self, frame: Frame) -> Iterator[Output]:
        """Take mel frames, [n, 128] of any n; give whole steps."""
        mel = take_rows(frame, "mel", self._encoder.config.n_mels).float()
        self._mel = torch.cat((self._mel, mel)) if len(self._mel) else mel
        self._take_levels(frame)
        while len(self._mel) >= self._next_step() * self._encoder.token_frames:
            yield self._step(self._next_step())

    def mark(self, meta: Mapping[str, Any]) -> None:
        """Pass marks by: the audio's end changes nothing here."""

    def flush(self) -> Iterator[Output]:
        """Run the last, short step; a last group of fewer than 8 mel frames is dropped (asr.md section 6)."""
        left = len(self._mel) // self._encoder.token_frames
        while left:
            step = min(left, self._next_step())
            yield self._step(step)
            left -= step
        self._leave(self._state)

    @property
    def _position(self) -> int:
        """Embeddings done."""
        return self._state.position // self._encoder.config.downsample

    def _next_step(self) -> int:
        """Embeddings of the step at the present position."""
        if self._position < self._lead:
            return min(MAX_STEP_TOKENS, self._lead - self._position)
        return self._chunk

    def _take_levels(self, frame: Frame) -> None:
        """Queue levels, one per 80 ms however the frames are cut."""
        if self._levels is None:
            return
        most = len(self._mel) // self._encoder.token_frames + 1
        self._levels += take_vector(frame, "level", most - len(self._levels))

    def _step(self, tokens: int) -> Output:
        used = tokens * self._encoder.token_frames
        tick = self._audio.token_samples * (self._position - self._settings.left_pad_tokens)
        pending = self._encoder.start_step(self._state, self._mel[None, :used])
        # A device is at work from here on; all else is done meanwhile.
        self._mel = self._mel[used:]
        levels = {}
        if self._levels is not None and len(self._levels) < tokens:
            self._levels = None
        if self._levels is not None:
            levels["level"] = Tensor.of(np.array(self._levels[:tokens], dtype=np.float32))
            del self._levels[:tokens]
        causes = f"the mel frames are far too large, {DAMAGED}"
        tensors = {"embeds": send_computed(pending()[0], "the embeddings are", causes), **levels}
        return Output(tick, tokens * self._audio.token_samples, tensors)
