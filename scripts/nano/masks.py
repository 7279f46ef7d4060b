"""What disturbs mel in training: another vocal tract, sounds longer and shorter, hidden bands and hidden moments.

The warp follows Jaitly and Hinton, "Vocal Tract Length Perturbation (VTLP) improves speech recognition" (2013), the
rest Park et al., "SpecAugment", arXiv:1904.08779, section 2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from voxtral_pipes.config import AudioConfig
from voxtral_pipes.models.mel import hz_of_mel, mel_of_hz

WARP = 0.14
"""The logarithm by which frequencies are stretched at most, either way, in two examples of three."""
RESTORED = 0.6
"""Examples in which what speed has done to the frequencies is taken back, half of it or more: hasty, not small."""
BENT = 0.12
"""How much nearer or farther than usual neighbouring bins may lie: formants move against each other."""
HURRIED = 0.35
"""How much faster or slower than the rest some moments are, in each of two waves: vowels and stops differ in length."""
BINS_A_WAVE, FRAMES_A_WAVE = (24, 90), (15, 40)
BANDS, WIDEST_BAND = 2, 22
MOMENTS, LONGEST_MOMENT = 10, 14
"""In frames of 10 ms: a word never disappears."""
_FINE, _STRETCHES = 100, 55
"""Stretches in the table: steps of a factor of e, and how many there are either way."""


class Masks:
    """The tables, on one device."""

    def __init__(self, config: AudioConfig, device: torch.device) -> None:
        top = mel_of_hz(np.float64(config.rate_hz / 2))
        self._step = float(top) / (config.n_mels + 1)
        centres = self._step * np.arange(1, config.n_mels + 1, dtype=np.float64)
        # What each bin takes after each of many stretches, as a number of bins: one row a stretch.
        factors = np.exp(np.arange(-_STRETCHES, _STRETCHES + 1) / _FINE)
        places = (
            np.stack([mel_of_hz(hz_of_mel(centres) * factor) for factor in factors.tolist()]) / self._step - 1
        )
        self._places = torch.from_numpy(places.clip(0, config.n_mels - 1).astype(np.float32)).to(device)
        self._device = device

    def __call__(self, mel: Tensor, paces: Tensor, seed: int) -> Tensor:
        """Disturb mel float32 [B, T, n_mels] of sound at paces [B] times its speed; by the seed alone."""
        draw = torch.Generator(self._device).manual_seed(seed)
        batch, steps, bins = mel.shape

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, device=self._device, generator=draw)

        stretch = torch.where(uniform(batch) < 2 / 3, WARP * (2 * uniform(batch) - 1), 0.0)
        back = torch.where(uniform(batch) < RESTORED, 0.5 + 0.5 * uniform(batch), 0.0)
        chosen = ((stretch + back * paces.log()) * _FINE).round().long().clamp(-_STRETCHES, _STRETCHES)
        bent = _waves(uniform(batch, 3, 2), bins, BENT, BINS_A_WAVE)
        places = (self._places[chosen + _STRETCHES] + bent).clamp(0, bins - 1)
        warped = _read(mel, places, 2)
        moments = torch.arange(steps, device=self._device)
        hurried = moments + _waves(uniform(batch, 3, 2), steps, HURRIED, FRAMES_A_WAVE)
        warped = _read(warped, hurried.clamp(0, steps - 1), 1)
        hidden = _spans(uniform(batch, 2, BANDS), bins, WIDEST_BAND)[:, None]
        hidden = hidden | _spans(uniform(batch, 2, MOMENTS), steps, LONGEST_MOMENT)[:, :, None]
        return torch.where(hidden, warped.mean(dim=(1, 2), keepdim=True), warped)


def _waves(drawn: Tensor, length: int, steepest: float, periods: tuple[int, int]) -> Tensor:
    """Return the sum of waves at 0 to length - 1, float32 [B, length]; `drawn` [B, 3, n] are what they are like."""
    shortest, longest = periods
    period, slope, phase = drawn[:, :, :, None].unbind(1)
    period, turns = shortest + period * (longest - shortest), 2 * math.pi
    at = torch.arange(length, device=drawn.device)
    return (slope * steepest * period / turns * torch.sin(turns * (at / period + phase))).sum(1)


def _read(mel: Tensor, places: Tensor, dim: int) -> Tensor:
    """Read mel [B, T, n_mels] at places between its frames or bins, [B, length of that dimension]."""
    places = places.unsqueeze(3 - dim)
    low = places.long().clamp(max=mel.shape[dim] - 2)
    share = places - low
    low = low.expand_as(mel)
    return torch.lerp(mel.gather(dim, low), mel.gather(dim, low + 1), share)


def _spans(drawn: Tensor, length: int, longest: int) -> Tensor:
    """Return where spans lie, bool [B, length]; `drawn` [B, 2, n] are their lengths and starts, from 0 to 1."""
    spans = drawn[:, 0] * longest
    starts = drawn[:, 1] * (length - spans)
    at = torch.arange(length, device=drawn.device)[None, :, None]
    return ((at >= starts[:, None]) & (at < (starts + spans)[:, None])).any(dim=2)
