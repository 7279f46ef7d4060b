"""Log-mel front end: samples at any rate in, float32 [n, 128] at 100 frames/s out (asr.md sections 2 and 3).

First in the pipe.  Everything is float64 inside and rounded to float32 once, and every operation works on
single elements or single rows, so a frame does not depend on which frames are computed with it.  Carried
between calls: the last samples (`MelState`) and, off 16 kHz, the filter memory of `Resampler`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxtral_pipes.config import AudioConfig
from voxtral_pipes.errors import BadInputError, BadModelError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

SILENCE_DBFS = -120.0
_BLOCK_FRAMES = 256
"""Frames per pass: bounds the windows held at once, however long the input of one `step`."""


def mel_of_hz(hz: Float64 | np.float64) -> Float64:
    """Slaney's mel scale: linear below 1000 Hz, logarithmic above (asr.md section 3)."""
    return np.where(hz < 1000, 3 * hz / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def hz_of_mel(mel: Float64) -> Float64:
    """Inverse of `mel_of_hz`."""
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27))


def filter_bank(config: AudioConfig) -> Float32:
    """Return Slaney's area-normalised triangles: float32 [window/2 + 1, n_mels], 0 Hz to half the rate.

    Computed in float64 and rounded, as mistral-common and transformers hold them.

    Raises:
        BadModelError: more mels than the window resolves, so that a filter would be empty.
    """
    top = config.rate_hz / 2
    bins = np.linspace(0, top, config.window_samples // 2 + 1)
    corners = hz_of_mel(np.linspace(0, float(mel_of_hz(np.float64(top))), config.n_mels + 2))
    low, mid, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - low) / (mid - low)
    falling = (high - bins[:, None]) / (high - mid)
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (high - low))
    if not filters.any(axis=0).all():
        raise BadModelError(
            f"{config.n_mels} mels are more than a window of {config.window_samples} samples resolves"
        )
    rounded: Float32 = filters.astype(np.float32)
    return rounded


@dataclass(frozen=True, slots=True)
class MelFilters:
    """What all streams share: the window and the filters, as the few bins each filter reads."""

    config: AudioConfig
    window: Float64
    """Periodic Hann [window_samples]."""
    bins: npt.NDArray[np.intp]
    """[width, n_mels]: bin k of every filter."""
    weights: Float64
    """[width, n_mels], 0 where a filter is narrower; the values are those of float32."""

    @classmethod
    def new(cls, config: AudioConfig) -> MelFilters:
        """Make the tables; raises BadModelError if the settings do not fit together."""
        if (
            config.hop_samples < 1
            or config.window_samples % 2
            or config.hop_samples > config.window_samples // 2
        ):
            raise BadModelError(
                f"a hop of {config.hop_samples} samples does not suit a window of {config.window_samples}"
            )
        dense = filter_bank(config).astype(np.float64)
        first = (dense > 0).argmax(axis=0)
        width = int((dense > 0).sum(axis=0).max())
        # A clipped index repeats the last bin, at half the rate, where every filter has come down to 0.
        bins = np.minimum(first + np.arange(width)[:, None], len(dense) - 1)
        weights = np.take_along_axis(dense, bins, axis=0)
        n = np.arange(config.window_samples)
        return cls(config, 0.5 - 0.5 * np.cos(2 * np.pi * n / config.window_samples), bins, weights)

    @property
    def look_ahead_samples(self) -> int:
        """Samples a token's last frame reads beyond the token's end (40)."""
        return self.config.window_samples // 2 - self.config.hop_samples


@dataclass(frozen=True, slots=True)
class MelState:
    """What one stream carries between calls."""

    tail: Float32
    """The samples the next frame begins with: float32 [< window_samples], 240 after whole tokens."""

    @classmethod
    def new(cls, config: AudioConfig) -> MelState:
        """Begin a stream: half a window of zeros, for frame 0 is centred on sample 0 (asr.md section 3.1)."""
        return cls(np.zeros(config.window_samples // 2, np.float32))


def step(filters: MelFilters, state: MelState, samples: Float32) -> tuple[Float32, MelState]:
    """Compute every frame that has become complete.

    `samples`: float32 [n] at `config.rate_hz`, the next of the padded stream.  Frame f is centred on sample
    `hop * f` and complete once half a window beyond its centre has come.

    Returns mel: float32 [frames, n_mels], scaled log10 power with its floor at `log_mel_max - 8` and no
    ceiling, and the next state.  Arguments are not changed.  Any cutting of the samples gives the same bits.
    """
    hop, window = filters.config.hop_samples, filters.config.window_samples
    buffer = np.concatenate([state.tail, samples])
    n_frames = max(0, (len(buffer) - window) // hop + 1)
    mel = np.empty((n_frames, filters.config.n_mels), np.float32)
    if n_frames:
        # A view.  numpy's sliding_window_view takes as long as the FFT of a live step.
        windows: Float32 = np.ndarray((n_frames, window), np.float32, buffer, 0, (4 * hop, 4))
        for start in range(0, n_frames, _BLOCK_FRAMES):
            mel[start : start + _BLOCK_FRAMES] = _log_mel(filters, windows[start : start + _BLOCK_FRAMES])
    return mel, MelState(buffer[n_frames * hop :].copy())


def _log_mel(filters: MelFilters, windows: Float32) -> Float64:
    spectrum = np.fft.rfft(windows * filters.window)
    power = spectrum.real**2 + spectrum.imag**2
    # Not a matrix product: BLAS sums in an order that depends on the number of rows, `sum` bin by bin.
    parts = power.take(filters.bins, axis=1)
    parts *= filters.weights
    mel = parts.sum(axis=1)
    log = np.log10(np.maximum(mel, 1e-10))
    scaled: Float64 = (np.maximum(log, filters.config.log_mel_max - 8) + 4) / 4
    return scaled


def level_dbfs(samples: Float32, token_samples: int) -> Float32:
    """Return the mean power of each token in dB of full scale: float32 [n / token_samples], not below -120.

    `samples`: float32 [n], n a multiple of `token_samples`.  A full-scale square wave is 0 dB.
    """
    tokens = samples.reshape(-1, token_samples).astype(np.float64)
    power = np.square(tokens).sum(axis=1) / token_samples
    level: Float32 = (10 * np.log10(np.maximum(power, 10 ** (SILENCE_DBFS / 10)))).astype(np.float32)
    return level


def downmix(samples: Float32, channel: int | None) -> Float32:
    """Return one channel, counted from 0, or the mean of all: float32 [n, channels] -> float32 [n].

    Raises:
        BadInputError: there is no such channel.
    """
    n_channels = samples.shape[1]
    if channel is not None:
        if channel >= n_channels:
            raise BadInputError(f"there is no channel {channel}: the input has {n_channels}, counted from 0")
        return samples[:, channel]
    if n_channels == 1:
        return samples[:, 0]
    total = np.zeros(len(samples))
    for each in samples.T:  # not np.mean, whose order of summation is its own affair
        total += each
    mean: Float32 = (total / n_channels).astype(np.float32)
    return mean


class Resampler:
    """Streaming conversion to the model's rate; soxr is imported only if there is something to convert.

    Quality HQ, float32, delay compensated: sample 0 stays at time 0 and what the filter withholds (37 ms at
    48 kHz, 115 ms at 8 kHz) comes at `flush` (formats.md section 7).  Any cutting gives what one call gives.
    """

    def __init__(self, rate_hz: int, target_hz: int) -> None:
        self._stream: Any = None
        if rate_hz != target_hz:
            import soxr

            self._stream = soxr.ResampleStream(rate_hz, target_hz, 1, dtype="float32", quality="HQ")

    def push(self, samples: Float32) -> Float32:
        """Take float32 [n] at the source's rate, give float32 [m] at the target's; m is often 0."""
        return samples if self._stream is None else self._convert(samples, last=False)

    def flush(self) -> Float32:
        """Give what was withheld; nothing may be pushed afterwards."""
        nothing = np.empty(0, np.float32)
        return nothing if self._stream is None else self._convert(nothing, last=True)

    def _convert(self, samples: Float32, *, last: bool) -> Float32:
        out: Float32 = self._stream.resample_chunk(np.ascontiguousarray(samples), last=last)
        # Samples near the largest float32 overflow inside the filter; no NaN may reach the mel.
        return np.nan_to_num(out, nan=0, posinf=0, neginf=0)
