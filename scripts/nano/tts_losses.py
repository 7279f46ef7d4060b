"""How far a waveform is from what it should be: spectra at several resolutions, mel, and the wave itself."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import TTS_RATE_HZ

SIZES = (256, 512, 1024, 2048)
_MEL_SIZE, _MELS = 1024, 64
_FLOOR = 1e-5


def wave_losses(made: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Compare waveforms [B, T], float32: one term a name; `total` is what to minimise."""
    magnitude, log = made.new_zeros(()), made.new_zeros(())
    for size in SIZES:
        ours, theirs = _spectrum(made, size), _spectrum(wanted, size)
        magnitude = magnitude + (ours - theirs).norm() / theirs.norm().clamp(min=1e-3)
        log = log + (ours.clamp(min=_FLOOR).log() - theirs.clamp(min=_FLOOR).log()).abs().mean()
    terms = {
        "stft": magnitude / len(SIZES),
        "log_stft": log / len(SIZES),
        "mel": (log_mel(made) - log_mel(wanted)).abs().mean(),
        "wave": (made - wanted).abs().mean(),
    }
    terms["total"] = terms["stft"] + terms["log_stft"] + 2 * terms["mel"] + 2 * terms["wave"]
    return terms


def log_mel(samples: Tensor) -> Tensor:
    """Return logarithms of mel magnitudes, [B, mels, frames]."""
    bank = _bank(samples.device)
    return (bank @ _spectrum(samples, _MEL_SIZE)).clamp(min=_FLOOR).log()


def _spectrum(samples: Tensor, size: int) -> Tensor:
    spectrum = torch.stft(
        samples.float(), size, size // 4, window=_window(size, samples.device), return_complex=True
    )
    # The square root has no slope at zero.
    power = torch.view_as_real(spectrum).square().sum(dim=-1) / size
    return (power + _FLOOR**2).sqrt()


@lru_cache(16)
def _window(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


@lru_cache(4)
def _bank(device: torch.device) -> Tensor:
    """Return triangular mel filters, [mels, bins]."""
    top = 2595 * torch.log10(torch.tensor(1 + TTS_RATE_HZ / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), _MELS + 2) / 2595) - 1)
    bins = torch.arange(_MEL_SIZE // 2 + 1) * TTS_RATE_HZ / _MEL_SIZE
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rise, fall).clamp(min=0)
    return F.normalize(bank, p=1, dim=1).to(device)
