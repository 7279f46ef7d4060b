"""vx-mel's stage: samples of one stream in, data frames of mel and level out.

First in the pipe, so it reads samples and not frames, and it alone decides padding and delay (design.md
sections 3 and 4).  The padded stream is zeros on the left, the audio, and zeros on the right; position p is
its samples 1280p..1280(p+1), and needs 40 more (2.5 ms) for its last mel frame.  How many positions go into a
data frame depends on `live` and on the position, never on how the samples arrive, so equal input gives equal
frames.
Latency: one position if live, else 32; off 16 kHz the resampler's 37 to 115 ms besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxtral_pipes.config import AudioConfig
from voxtral_pipes.errors import UsageError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.formats.wav import PcmFormat, WavReader
from voxtral_pipes.models.mel import Float32, MelFilters, MelState, Resampler, downmix, level_dbfs, step
from voxtral_pipes.stages.base import Hello, Outgoing, Output
from voxtral_pipes.stages.settings import MAX_PROMPT_TOKENS

LIVE_TOKENS, FILE_TOKENS = 1, 32
"""Positions in one data frame."""
RIGHT_PAD_TOKENS = 1 + 10
"""Beyond the delay: one for BOS and room for the longest word (asr.md section 4)."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark to send between two data frames."""

    meta: Mapping[str, Any]


def mel_hello(config: AudioConfig) -> Hello:
    """Describe the output: mel f32 [n, n_mels], time-major, and level f32 [n / 8], dBFS."""
    return Hello({"mel": {"d": "f32", "h": [-1, config.n_mels]}, "level": {"d": "f32", "h": [-1]}})


class MelStage:
    """What all streams share: the filters, and how streams are padded."""

    name = "vx-mel"

    def __init__(
        self, config: AudioConfig, *, delay_tokens: int, left_pad_tokens: int, right_pad: bool = True
    ) -> None:
        self.config = config
        self.filters = MelFilters.new(config)
        self.delay_tokens = delay_tokens
        self.left_pad_tokens = left_pad_tokens
        self.prompt_tokens = 1 + left_pad_tokens + delay_tokens
        self.right_pad = right_pad
        if self.prompt_tokens > MAX_PROMPT_TOKENS:
            raise UsageError(
                f"left padding of {left_pad_tokens} makes a prompt of {self.prompt_tokens} tokens; "
                f"{MAX_PROMPT_TOKENS} is the most"
            )

    def hello(self) -> Hello:
        """Describe the output."""
        return mel_hello(self.config)

    def open(self, rate_hz: int, *, live: bool, source: str) -> tuple[MelStream, Mapping[str, Any]]:
        """Begin a stream of samples at `rate_hz`; return it and the `m` of its open frame."""
        meta = {
            "delay_tokens": self.delay_tokens,
            "left_pad_tokens": self.left_pad_tokens,
            "prompt_tokens": self.prompt_tokens,
            "live": live,
            "source": source,
        }
        return MelStream(self, rate_hz, LIVE_TOKENS if live else FILE_TOKENS), meta


class MelStream:
    """One stream.  Carried between calls: less than a data frame of samples, the states of `models.mel`."""

    def __init__(self, stage: MelStage, rate_hz: int, group_tokens: int) -> None:
        self._stage = stage
        self._resampler = Resampler(rate_hz, stage.config.rate_hz)
        self._group = group_tokens
        self._mel = MelState.new(stage.config)
        # Padded samples from the next token's start on; `_mel` has already taken the first `_ahead` of them.
        self._pieces: list[Float32] = []
        self._held = 0
        self._ahead = 0
        self._tokens = 0
        self._samples = 0
        self._started = False
        self._audio_end: int | None = None

    def push(self, samples: Float32) -> Iterator[Output | Mark]:
        """Take samples, float32 [n] at the source's rate, one channel; give the data frames they complete."""
        if not len(samples):
            return
        if not self._started:
            self._started = True
            yield from self._silence(self._stage.left_pad_tokens * self._stage.config.token_samples)
        yield from self._audio(self._resampler.push(samples))

    def flush(self) -> Iterator[Output | Mark]:
        """Pad on the right and give what is left; call it once.  A stream without samples gives nothing."""
        if not self._started:
            return
        yield from self._audio(self._resampler.flush())
        config = self._stage.config
        if self._stage.right_pad:
            self._audio_end = self._samples
            align = -self._samples % config.token_samples
            tokens = self._stage.delay_tokens + RIGHT_PAD_TOKENS
            yield from self._silence(align + tokens * config.token_samples)
        yield from self._silence(self._stage.filters.look_ahead_samples)
        rest = (self._held - self._stage.filters.look_ahead_samples) // config.token_samples
        if rest > 0:
            yield from self._emit(rest)

    def _audio(self, samples: Float32) -> Iterator[Output | Mark]:
        self._samples += len(samples)
        yield from self._take(samples)

    def _silence(self, n_samples: int) -> Iterator[Output | Mark]:
        piece = self._group * self._stage.config.token_samples
        while n_samples > 0:
            yield from self._take(np.zeros(min(n_samples, piece), np.float32))
            n_samples -= piece

    def _take(self, samples: Float32) -> Iterator[Output | Mark]:
        self._pieces.append(samples)
        self._held += len(samples)
        needed = self._group * self._stage.config.token_samples + self._stage.filters.look_ahead_samples
        while self._held >= needed:
            yield from self._emit(self._group)

    def _emit(self, n_tokens: int) -> Iterator[Output | Mark]:
        """Send the next `n_tokens` positions, which are complete."""
        config, filters = self._stage.config, self._stage.filters
        held = self._pieces[0] if len(self._pieces) == 1 else np.concatenate(self._pieces)
        n_samples = n_tokens * config.token_samples
        mel, self._mel = step(filters, self._mel, held[self._ahead : n_samples + filters.look_ahead_samples])
        level = level_dbfs(held[:n_samples], config.token_samples)
        self._pieces = [held[n_samples:]]
        self._held -= n_samples
        self._ahead = filters.look_ahead_samples
        tick = (self._tokens - self._stage.left_pad_tokens) * config.token_samples
        self._tokens += n_tokens
        if self._audio_end is not None and tick + n_samples - config.hop_samples >= self._audio_end:
            yield Mark({"audio_end": self._audio_end})
            self._audio_end = None
        yield Output(tick, n_samples, {"mel": Tensor.of(mel), "level": Tensor.of(level)})


@dataclass(frozen=True, slots=True)
class Source:
    """One input and how it is to be read."""

    name: str
    live: bool
    """Not a regular file."""
    warn: Callable[[str], None]
    raw: PcmFormat | None = None
    channel: int | None = None
    """The channel to take, from 0; None is the mean of all."""


def source_frames(
    stage: MelStage, source: Source, pieces: Iterable[bytes], number: int, outgoing: Outgoing
) -> Iterator[Frame]:
    """Yield the frames of one input, `open` to `end`, each as soon as the bytes it needs have come.

    Raises:
        BadInputError: the bytes are no audio that can be read.
    """
    reader = WavReader(source.raw, source.warn)
    stream: MelStream | None = None
    flushed = False
    for piece in pieces:
        samples = reader.push(piece)
        if not reader.ready:
            continue
        mono = downmix(samples, source.channel)
        if stream is None:
            stream, meta = stage.open(reader.rate_hz, live=source.live, source=source.name)
            yield outgoing.open(number, meta)
        yield from _numbered(stream.push(mono), number, outgoing)
        if reader.ended and not flushed:
            # The last words need not wait for a writer that keeps the pipe open.
            flushed = True
            yield from _numbered(stream.flush(), number, outgoing)
        if reader.done:
            break
    reader.finish()
    if stream is not None and not flushed:
        yield from _numbered(stream.flush(), number, outgoing)
    yield outgoing.end(number)


def _numbered(items: Iterable[Output | Mark], number: int, outgoing: Outgoing) -> Iterator[Frame]:
    for item in items:
        if isinstance(item, Mark):
            yield Frame("mark", stream=number, meta=item.meta)
        else:
            yield outgoing.data(number, item)
