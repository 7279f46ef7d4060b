"""A WAV drawn as a PNG (vx-peek --png): the waveform, and below it its spectrogram on the same seconds.

Memory is bounded whatever the length (`models.columns`): of the waveform the extremes of each column are kept, of
the spectrogram the mean power.  Carried between calls: less than a window of samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.wav import PcmFormat, Samples
from voxtral_pipes.models.columns import Columns, extremes, mean
from voxtral_pipes.models.picture import write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW_S = 0.04
"""The window is the next lower power of two: 512 samples (21 ms) at 24 kHz and 512 (32 ms) at 16 kHz."""
HOPS = 4
"""Windows that cover a sample."""
MAX_BANDS = 512
RANGE_DB = 80
_BLOCK_WINDOWS = 64


class Waveform:
    """Collects the samples of one WAV to be drawn: of all channels the extremes, and the spectrum of their mean."""

    def __init__(self) -> None:
        self._format: PcmFormat | None = None
        self._envelope = Columns(2, np.float32, extremes)
        self._spectrogram: Spectrogram | None = None

    def begin(self, form: PcmFormat) -> None:
        """Take what the header says."""
        self._format = form
        self._spectrogram = Spectrogram(form.rate_hz)

    def add(self, samples: Samples) -> None:
        """Take samples, float32 [n, channels]."""
        assert self._spectrogram is not None
        self._envelope.add(np.column_stack([samples.min(axis=1), samples.max(axis=1)]))
        self._spectrogram.add(samples.mean(axis=1, dtype=np.float64))

    def write(self, file: BinaryIO) -> None:
        """Draw the picture; call it once, after the last sample.

        Raises:
            BadInputError: no sample came.
        """
        if not self._envelope.rows:
            raise BadInputError("there is nothing to draw: no samples came")
        assert self._spectrogram is not None
        self._spectrogram.flush()
        write_png(file, [self._draw_envelope, self._draw_spectrogram])

    def _seconds(self) -> float:
        assert self._format is not None
        return self._envelope.rows / self._format.rate_hz

    def _draw_envelope(self, axes: Axes) -> None:
        assert self._format is not None
        low, high = self._envelope.image().T
        times = (np.arange(len(low)) + 0.5) * (self._envelope.group / self._format.rate_hz)
        axes.fill_between(times, low, high, linewidth=0.5, color="tab:blue")
        largest = float(max(-low.min(), high.max()))
        # Full scale, so that loudness can be compared by eye; quiet sound would be a line and is magnified.
        reach = max(1.02 if largest > 0.25 else 0, 1.05 * largest, 1e-6)
        axes.set_ylim(-reach, reach)
        axes.set_xlim(0, self._seconds())
        axes.set_ylabel("of full scale")
        title = f"{self._format.encoding}  {self._format.rate_hz} Hz  {_channels(self._format.channels)}"
        axes.set_title(title, fontsize=9, loc="left")

    def _draw_spectrogram(self, axes: Axes) -> None:
        assert self._format is not None and self._spectrogram is not None
        decibels = 10 * np.log10(np.clip(self._spectrogram.columns.image(), 1e-20, 1e30))
        top = float(decibels.max())
        axes.imshow(
            decibels.T, cmap="magma", vmin=top - RANGE_DB, vmax=top,
            extent=(0, self._spectrogram.seconds(), 0, self._format.rate_hz / 2), origin="lower", aspect="auto",
        )  # fmt: skip
        axes.set_xlim(0, self._seconds())
        axes.set_xlabel("s")
        axes.set_ylabel("Hz")
        axes.set_title(
            f"power, {RANGE_DB} dB below {top:.0f} dB (0: a full-scale sine)", fontsize=9, loc="left"
        )


class Spectrogram:
    """Mean power of one channel in up to `MAX_BANDS` equal bands from 0 Hz to half the rate."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._window = 1 << (int(rate_hz * WINDOW_S).bit_length() - 1)
        self._hop = self._window // HOPS
        n = np.arange(self._window)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / self._window)
        self._weights = hann * (2 / hann.sum())  # a sine of amplitude 1 in the middle of a bin has power 1
        self._bands = min(self._window // 2, MAX_BANDS)
        self.columns = Columns(self._bands, np.float32, mean)
        # Window f is centred on sample f * hop, and the first one is centred on the beginning.
        self._tail = np.zeros(self._window // 2)

    def add(self, samples: npt.NDArray[np.float64]) -> None:
        """Take samples, float64 [n]."""
        buffer = np.concatenate([self._tail, samples])
        n_windows = max(0, (len(buffer) - self._window) // self._hop + 1)
        for start in range(0, n_windows, _BLOCK_WINDOWS):
            self.columns.add(self._powers(buffer, start, min(n_windows, start + _BLOCK_WINDOWS)))
        self._tail = buffer[n_windows * self._hop :].copy()

    def _powers(self, buffer: npt.NDArray[np.float64], start: int, stop: int) -> npt.NDArray[np.float64]:
        """Return the power of windows `start` to `stop`, float64 [stop - start, bands]; half the rate is left out."""
        windows = np.lib.stride_tricks.sliding_window_view(buffer, self._window)[:: self._hop][start:stop]
        spectrum = np.fft.rfft(windows * self._weights)[:, :-1]
        power = spectrum.real**2 + spectrum.imag**2
        bands: npt.NDArray[np.float64] = power.reshape(len(power), self._bands, -1).mean(axis=2)
        return bands

    def flush(self) -> None:
        """Take the silence that the last windows reach into; nothing may be added afterwards."""
        self.add(np.zeros(self._window // 2))

    def seconds(self) -> float:
        """Return how much time the columns stand for."""
        return self.columns.rows * self.columns.share() * self._hop / self._rate_hz


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"
