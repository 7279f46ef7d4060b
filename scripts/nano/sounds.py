"""The sound of a batch, put together and disturbed on the device: speed, gain, hiss, echo, noise, bandwidth, level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nano.examples import TOKEN_SAMPLES, Plan
from nano.pack import Pack
from nano.words import RATE_HZ

HISSING, HISSING_NARROW = 0.35, 0.8
"""Rows whose recordings bring their own hiss, which begins and ends with each of them as clips put together have it."""
UNEVEN, STEEPEST_UNEVEN, SWELLS_HZ = 0.35, 1.5, 10
"""Rows whose noise swells and fades, as gusts and handled microphones do; the deviation of its logarithm, at most."""
TELEPHONE = 0.2
"""Rows of a telephone's bandwidth, beside those that are narrow."""
LEAST_MARGIN, MOST_MARGIN = -0.01, 0.12
"""In seconds: how long before and after its words such a recording begins and ends; mostly not long."""


class Sounds:
    """All samples of a pack on one device."""

    def __init__(self, pack: Pack, *, tokens: int, device: torch.device, disturbed: bool = True) -> None:
        self._device, self._samples, self._disturbed = device, tokens * TOKEN_SAMPLES, disturbed
        self._bank = torch.from_numpy(np.concatenate(list(pack.sounds.values()))).to(device)
        noises = [pack.audio(one) for one in pack.utterances if one.kind == "noise" and one.split == "train"]
        self._noise = torch.from_numpy(np.concatenate(noises)).to(device) if noises else None

    def __call__(self, plan: Plan, seed: int) -> Tensor:
        """Return padded streams, float32 [B, N * 1280], in which nobody has a partner."""
        return self._voices([plan], seed)[0]

    def with_partners(self, plan: Plan, seed: int) -> tuple[Tensor, Tensor]:
        """Return the same, and what the partners say where they have one, disturbed alike."""
        both = self._voices([plan, plan.partners], seed)
        return both[0], both[1]

    def shares(self, plan: Plan, hop: int) -> Tensor:
        """Return how much of each frame of `hop` samples is the partners', float32 [B, N * 1280 / hop]."""
        frames = self._samples // hop
        edges = torch.zeros(len(plan.delays) * (frames + 1), device=self._device)
        rows, share = self._to(plan.row) * (frames + 1), self._to(plan.share)
        for at, step in ((plan.at, share), (plan.at + plan.heard, -share)):
            edges.index_add_(0, rows + (self._to(at) // hop).clamp(0, frames), step)
        return edges.view(-1, frames + 1)[:, :-1].cumsum(1).clamp(0, 1)

    def _voices(self, plans: Sequence[Plan], seed: int) -> Tensor:
        draw = torch.Generator(self._device).manual_seed(seed)
        plan, voices = plans[0], torch.stack([self._placed(one) for one in plans])
        at = torch.arange(self._samples, device=self._device)
        inside = (at >= self._to(plan.first)[:, None]) & (at < self._to(plan.last)[:, None])
        if not self._disturbed:
            return voices * inside
        narrow = self._to(plan.narrow)[:, None]
        return self._disturb(voices + hiss(plan, voices[0], draw), inside, narrow, draw)

    def _placed(self, plan: Plan) -> Tensor:
        """Add each utterance to its row, at its speed (linear between samples)."""
        batch = len(plan.delays)
        out = torch.zeros(batch * self._samples, device=self._device)
        if not len(plan.row):
            return out.view(batch, -1)
        # One after the other, as long as each is: a batch side by side would be mostly filling.
        counts = plan.heard
        total = int(counts.sum())
        owner = torch.repeat_interleave(self._to(counts), output_size=total)
        steps = torch.arange(total, device=self._device) - self._to(np.cumsum(counts) - counts)[owner]
        speed, gain, length, source, at, row = (
            self._to(part)[owner]
            for part in (plan.speed, plan.gain, plan.length, plan.source, plan.at, plan.row)
        )
        position = steps * speed
        whole = position.long()
        index = (source + whole).clamp(max=len(self._bank) - 2)
        low, high = self._bank[index].float(), self._bank[index + 1].float()
        target = at + steps
        used = (whole < length - 1) & (target < self._samples) & (target >= 0)
        value = (low + (high - low) * (position - whole)) * gain * used / 32768
        flat = row * self._samples + target.clamp(0, self._samples - 1)
        return out.index_add_(0, flat, value).view(batch, -1)

    def _disturb(self, voices: Tensor, inside: Tensor, narrow: Tensor, draw: torch.Generator) -> Tensor:
        """Disturb some versions [V, B, samples] of the same rows alike; noise and level are those of the first."""
        batch = voices.shape[1]

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(batch, 1, device=self._device, generator=draw) * (high - low) + low

        def some(share: float) -> Tensor:
            return uniform(0, 1) < share

        rates = _rates(self._samples, self._device)
        # Echo: a decaying noise of 50 to 700 ms, up to as loud as the direct sound.
        decay = torch.arange(RATE_HZ // 2, device=self._device) / RATE_HZ
        echo = torch.randn(batch, len(decay), device=self._device, generator=draw)
        echo = echo * torch.exp(-6.9 * decay / uniform(0.05, 0.7)) * some(0.5)
        echo = echo * uniform(0.05, 1.0) / echo.square().sum(1, keepdim=True).sqrt().clamp(min=1e-9)
        echo[:, 0] = 1
        spectrum = torch.fft.rfft(voices) * torch.fft.rfft(echo, self._samples)
        # Hearing: a tilt, hills and valleys, and often no more than a telephone's bandwidth, as fsdd has it.
        octaves = torch.log2((rates / 1000).clamp(min=0.05))
        decibels = uniform(-6, 6) * octaves / 2
        for hills in (0.15, 0.3, 0.6):
            decibels = decibels + uniform(0, 5) * torch.cos(2 * math.pi * (hills * octaves + uniform(0, 1)))
        tilt = 10 ** (decibels / 20)
        upper = torch.where(some(0.2), uniform(4000, 7500), torch.full_like(uniform(0, 1), 8000))
        upper = torch.where(some(TELEPHONE) | narrow, uniform(3300, 4000), upper)
        lower = torch.where(some(0.3), uniform(50, 320), torch.zeros_like(upper))
        band = torch.sigmoid((upper - rates) / 60) * torch.sigmoid((rates - lower) / 15)
        # Noise of any colour, between white and brown, or a recorded one; 5 to 45 dB below the speech, or none.
        slope = uniform(-2.0, 0.2)
        white = torch.randn(inside.shape, device=self._device, generator=draw)
        noise = torch.fft.irfft(_coloured(white, slope), self._samples)
        if self._noise is not None:
            starts = (uniform(0, 1) * (len(self._noise) - self._samples)).long().clamp(min=0)
            span = (starts + torch.arange(self._samples, device=self._device)) % len(self._noise)
            noise = torch.where(some(0.35), self._noise[span].float(), noise)
        swells = torch.randn(
            batch, 1, self._samples * SWELLS_HZ // RATE_HZ, device=self._device, generator=draw
        )
        swells = F.interpolate(swells, self._samples, mode="linear")[:, 0]
        noise = noise * torch.exp(swells * uniform(0, STEEPEST_UNEVEN) * some(UNEVEN))
        heard = torch.fft.irfft(spectrum * tilt * band, self._samples)
        noise = torch.fft.irfft(torch.fft.rfft(noise) * band, self._samples)
        loud = _power(heard[0], heard[0].abs() > 1e-3)
        # Rows without speech take noise of some level of its own.
        loud = torch.where(loud > 1e-9, loud, 10 ** (uniform(-60, -25) / 10))
        ratio = 10 ** (-uniform(3, 45) / 20) * ~some(0.12)
        noise = noise * (loud / _power(noise, inside)).sqrt() * ratio
        level = 10 ** (uniform(-42, -14) / 20) / loud.sqrt()
        mixed = ((heard + noise) * level * inside).clamp(-1, 1)
        # Recorders give 16 bits.
        return torch.round(mixed * 32767) / 32768

    def _to(self, values: np.ndarray) -> Tensor:
        return sent(values, self._device)


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """Send values to a device, without waiting until it has done what it was asked before."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _rates(samples: int, device: torch.device) -> Tensor:
    """Return the frequencies of a spectrum, in Hz."""
    return torch.fft.rfftfreq(samples, 1 / RATE_HZ, device=device)


def _coloured(white: Tensor, slope: Tensor) -> Tensor:
    """Return the spectrum of noise [B, samples] whose power goes with the frequency to `slope` [B, 1]."""
    rates = _rates(white.shape[1], white.device)
    return torch.fft.rfft(white) * (rates.clamp(min=40) / 1000) ** (slope / 2)


def _power(samples: Tensor, where: Tensor) -> Tensor:
    """Return the mean square over some samples of each row, [B, 1]."""
    return ((samples * where).square().sum(1, keepdim=True) / where.sum(1, keepdim=True).clamp(min=1)).clamp(
        min=math.ulp(0.0) + 1e-12
    )


def hiss(plan: Plan, speech: Tensor, draw: torch.Generator) -> Tensor:
    """Return noise from pink to blue, 10 to 45 dB below speech [B, samples], that is there while recordings last."""
    batch, samples = speech.shape
    device = speech.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=draw)

    after = plan.at + plan.heard
    margins = LEAST_MARGIN + uniform(2, len(after)).square() * (MOST_MARGIN - LEAST_MARGIN)
    margins = (margins * RATE_HZ).long()
    edges = torch.zeros(batch * (samples + 1), device=device)
    row, begins, ends, narrow = (
        sent(part, device) for part in (plan.row, plan.at, after, plan.narrow[:, None])
    )
    rows = row * (samples + 1)
    for side, at in ((1, begins - margins[0]), (-1, ends + margins[1])):
        edges.index_add_(0, rows + at.clamp(0, samples), edges.new_full((len(at),), side))
    lasting = edges.view(batch, -1)[:, :-1].cumsum(1) > 0
    white = torch.randn(speech.shape, device=device, generator=draw)
    slope = 2.5 * uniform(batch, 1) - 0.5
    upper = torch.where((uniform(batch, 1) < 0.5) | narrow, 4000, 8000)
    band = _rates(samples, device) < upper
    noise = torch.fft.irfft(_coloured(white, slope) * band, samples) * lasting
    level = (_power(speech, speech.abs() > 1e-3) / _power(noise, lasting)).sqrt()
    share = torch.where(narrow, HISSING_NARROW, HISSING)
    ratio = 10 ** (-(10 + 35 * uniform(batch, 1)) / 20) * (uniform(batch, 1) < share)
    return noise * level * ratio
