"""vx-peek on audio: the bytes of a WAV in; its header, a line for each second, and totals out.

For the output of vx-codec, which is no frames.  Samples are looked at in blocks that depend on their position
only, never on how the bytes arrive, so equal input gives equal numbers.
Latency: the second that a line is about.  Carried between calls: less than a block of samples, and sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from voxtral_pipes.errors import VoxError
from voxtral_pipes.formats.wav import Advice, PcmFormat, Samples, WavReader, decode

ADVICE = Advice(convert="; convert it: ffmpeg -i INPUT -f wav - | vx-peek")
BLOCK_FRAMES = 8192
"""Sample frames looked at together, fewer at the end of a second."""


class Collector(Protocol):
    """Keeps what a file is to be made of."""

    def begin(self, form: PcmFormat) -> None:
        """Take what the header says; called once, before any sample."""

    def add(self, samples: Samples) -> None:
        """Take samples, float32 [n, channels].

        Raises:
            VoxError: they are not kept; what is kept stays as it is.
        """


class Meter:
    """Sums over a stretch of samples, all channels together."""

    def __init__(self, full_scale: float) -> None:
        self._full_scale = full_scale
        self.frames = 0
        self._values = 0
        self._energy = 0.0
        self._peak = 0.0
        self._clipped = 0

    def add(self, samples: Samples) -> None:
        """Take samples, float32 [n, channels], n > 0; "clipped" are those at full scale or beyond."""
        sizes = np.abs(samples)
        self.frames += len(samples)
        self._values += samples.size
        self._energy += float(np.square(sizes, dtype=np.float64).sum())
        self._peak = max(self._peak, float(sizes.max()))
        self._clipped += int(np.count_nonzero(sizes >= self._full_scale))

    def join(self, other: Meter) -> None:
        """Take what another one has summed."""
        self.frames += other.frames
        self._values += other._values
        self._energy += other._energy
        self._peak = max(self._peak, other._peak)
        self._clipped += other._clipped

    def shown(self) -> dict[str, Any]:
        """Return the numbers; `None` is the level of digital silence, and of nothing."""
        power = self._energy / max(1, self._values)
        return {
            "peak_dbfs": _decibels(self._peak**2),
            "rms_dbfs": _decibels(power),
            "clipped": self._clipped,
        }


class WavPeek:
    """Watches one WAV; `show` gets each description as it becomes known, `warn` and `report` a line of text.

    `problems` counts what was wrong, beyond warnings.
    """

    def __init__(
        self,
        show: Callable[[dict[str, Any]], None],
        warn: Callable[[str], None],
        report: Callable[[str], None],
        collectors: Iterable[Collector] = (),
    ) -> None:
        self._show = show
        self._report = report
        self._collectors = list(collectors)
        self._reader = WavReader(None, warn, ADVICE)
        self._form: PcmFormat | None = None
        self._held: list[Samples] = []
        self._n_held = 0
        self._failed = self._closed = False
        self.problems = 0

    @property
    def done(self) -> bool:
        """True once nothing that may follow can be read: after a header that is wrong, or behind the WAV."""
        return self._failed or self._reader.done

    def push(self, data: bytes) -> None:
        """Take the next bytes; they are dropped if `done`."""
        if self.done:
            return
        try:
            samples = self._reader.push(data)
        except VoxError as error:
            self._failed = True
            self._wrong(error)
            return
        if self._form is None and (form := self._reader.format) is not None:
            self._begin(form)
        if len(samples):
            self._take(samples)
        if self._reader.ended:  # the totals need not wait for a writer that keeps the pipe open
            self._close()

    def finish(self) -> None:
        """Take the end of the input; call it once."""
        if self._failed:
            return
        try:
            self._reader.finish()
        except VoxError as error:
            self._wrong(error)
            return
        self._close()

    def _begin(self, form: PcmFormat) -> None:
        self._form = form
        self._second = Meter(full_scale(form.encoding))
        self._total = Meter(full_scale(form.encoding))
        declared = self._reader.declared_frames
        self._show(
            {
                "kind": "wav",
                "encoding": form.encoding,
                "rate_hz": form.rate_hz,
                "channels": form.channels,
                "declared_seconds": None if declared is None else declared / form.rate_hz,
            }
        )
        for collector in self._collectors:
            collector.begin(form)

    def _take(self, samples: Samples) -> None:
        self._held.append(samples)
        self._n_held += len(samples)
        if self._n_held < self._next_block():
            return
        held = np.concatenate(self._held)
        at = 0
        while len(held) - at >= (n_frames := self._next_block()):
            self._block(held[at : at + n_frames])
            at += n_frames
        self._held, self._n_held = [held[at:].copy()], len(held) - at

    def _next_block(self) -> int:
        assert self._form is not None
        return min(BLOCK_FRAMES, self._form.rate_hz - self._second.frames)

    def _block(self, samples: Samples) -> None:
        assert self._form is not None
        self._second.add(samples)
        for collector in self._collectors:
            try:
                collector.add(samples)
            except VoxError as error:
                self._wrong(error)
        if self._second.frames == self._form.rate_hz:
            self._line()

    def _line(self) -> None:
        assert self._form is not None
        begin, second = self._total.frames, self._second
        self._total.join(second)
        shown = {"kind": "audio", "t": begin, "u": second.frames, "seconds": begin / self._form.rate_hz}
        self._show({**shown, **second.shown()})
        self._second = Meter(full_scale(self._form.encoding))

    def _close(self) -> None:
        if self._closed or self._form is None:
            return
        self._closed = True
        if self._n_held:
            self._block(np.concatenate(self._held))
        if self._second.frames:
            self._line()
        frames = self._total.frames
        shown = {"kind": "end", "u": frames, "seconds": frames / self._form.rate_hz}
        self._show({**shown, **self._total.shown()})

    def _wrong(self, error: VoxError) -> None:
        self.problems += 1
        self._report(str(error))


def as_line(shown: Mapping[str, Any]) -> str:
    """Return a description as one line for people."""
    kind = f"{shown['kind']:<5}"
    if shown["kind"] == "wav":
        channels = f"{shown['channels']} channel{'s' if shown['channels'] > 1 else ''}"
        declared = shown["declared_seconds"]
        length = "length unknown" if declared is None else f"{declared:.3f} s declared"
        return f"{kind}  {shown['encoding']}  {shown['rate_hz']} Hz  {channels}  {length}"
    start = f"t={shown['t']} ({shown['seconds']:.3f} s)  " if "t" in shown else ""
    length = f"u={shown['u']}" if "t" in shown else f"u={shown['u']} ({shown['seconds']:.3f} s)"
    levels = [
        f"{name} {'silent' if (level := shown[f'{name}_dbfs']) is None else f'{round(level, 1) + 0.0} dBFS'}"
        for name in ("peak", "rms")
    ]
    clipped = [f"clipped {shown['clipped']}"] if shown["clipped"] else []
    return "  ".join([kind, start + length, *levels, *clipped])


def full_scale(encoding: str) -> float:
    """Return the greatest value a sample can have; 1.0 for float, which has no end.

    Of 32-bit integers it is the greatest with 24 bits, because many recordings hold no more than those.
    """
    bits = {"u8": 8, "s16": 16, "s24": 24, "s24-32": 24, "s32": 24}.get(encoding)
    if bits is not None:
        return 1 - 2.0 ** (1 - bits)
    return float(decode(bytes(range(256)), encoding).max()) if encoding in ("alaw", "mulaw") else 1.0


def _decibels(power: float) -> float | None:
    """Return power in dB of full scale, a full-scale square wave being 0 dB."""
    return 10 * math.log10(power) if power > 0 else None
