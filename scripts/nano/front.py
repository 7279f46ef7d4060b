"""The mel front end of `voxtral_pipes.models.mel`, batched and on any device; a test holds the two together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from voxtral_pipes.config import AudioConfig
from voxtral_pipes.models.mel import MelFilters, filter_bank


class Front:
    """The tables, on one device."""

    def __init__(self, config: AudioConfig, device: torch.device) -> None:
        self._config = config
        self._filters = torch.from_numpy(filter_bank(config)).to(device)
        self._window = torch.from_numpy(MelFilters.new(config).window.astype(np.float32)).to(device)

    def __call__(self, samples: Tensor) -> Tensor:
        """Map padded streams float32 [B, 1280p] to mel float32 [B, 8p, n_mels]; zeros lie beyond both ends."""
        c = self._config
        half = c.window_samples // 2
        padded = torch.nn.functional.pad(samples, (half, half - c.hop_samples))
        spectrum = torch.fft.rfft(padded.unfold(1, c.window_samples, c.hop_samples) * self._window)
        power = spectrum.real**2 + spectrum.imag**2
        with torch.autocast(samples.device.type, enabled=False):
            mel: Tensor = power @ self._filters
        log = mel.clamp(min=1e-10).log10()
        scaled: Tensor = (log.clamp(min=c.log_mel_max - 8) + 4) / 4
        return scaled
