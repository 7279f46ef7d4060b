"""Disturbed mel: warped along frequency, with bands and moments hidden."""

from __future__ import annotations

import numpy as np
import torch
from nano.masks import (
    BANDS,
    BENT,
    BINS_A_WAVE,
    FRAMES_A_WAVE,
    HURRIED,
    LONGEST_MOMENT,
    MOMENTS,
    WARP,
    WIDEST_BAND,
    Masks,
)

from voxtral_pipes.config import AudioConfig
from voxtral_pipes.models.mel import hz_of_mel, mel_of_hz

MASKS = Masks(AudioConfig(), torch.device("cpu"))
BATCH, STEPS, BINS = 24, 1280, 128
EVEN = torch.ones(BATCH)


def _seen(disturbed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bins and moments that are not hidden, bool [B, bins] and [B, steps], of mel that varies everywhere."""
    hidden = disturbed == disturbed.flatten(1).mode(dim=1).values[:, None, None]
    return ~hidden.all(dim=1), ~hidden.all(dim=2)


def farthest(steepest: float, periods: tuple[int, int]) -> float:
    """Return how far two waves can carry."""
    return 2 * steepest * max(periods) / (2 * np.pi)


def test_a_tone_moves_as_its_frequency_does() -> None:
    """One bin is loud; where it lies afterwards is where a frequency stretched by one factor lies."""
    bin_ = 60
    mel = torch.rand(BATCH, STEPS, BINS, generator=torch.Generator().manual_seed(1)) * 1e-3
    mel[:, :, bin_] += 1
    step = float(mel_of_hz(np.float64(8000))) / (BINS + 1)
    hz = float(hz_of_mel(np.asarray(step * (bin_ + 1))))
    low, high = (float(mel_of_hz(np.float64(hz * f))) / step - 1 for f in (np.exp(-WARP), np.exp(WARP)))
    places = {int(row.argmax()) for row in MASKS(mel, EVEN, 0).median(dim=1).values if row.max() > 0.4}
    assert bin_ in places and len(places) > 5
    bent = 1 + farthest(BENT, BINS_A_WAVE)
    assert low - bent <= min(places) < bin_ < max(places) <= high + bent
    slower, faster = (MASKS(mel, EVEN * pace, 0).median(dim=1).values.argmax(dim=1) for pace in (0.8, 1.25))
    assert slower.float().mean() > bin_ > faster.float().mean()


def test_a_moment_moves_a_little_and_nothing_comes_before_another() -> None:
    """Each frame holds its own number; what is read is about there, and goes on rising."""
    count = 400
    mel = torch.arange(float(count))[None, :, None].expand(BATCH, count, BINS)
    disturbed = MASKS(mel, EVEN, 0)
    _, moments = _seen(disturbed)
    moved = 0.0
    for row, kept in zip(disturbed, moments, strict=True):
        places = row.median(dim=1).values[kept]
        assert (places.diff() > -1e-3).all()
        moved = max(moved, float((places - torch.arange(count)[kept]).abs().max()))
    assert 1 < moved <= farthest(HURRIED, FRAMES_A_WAVE) + 0.1


def test_little_is_hidden_and_something_is() -> None:
    mel = torch.rand(BATCH, STEPS, BINS, generator=torch.Generator().manual_seed(2))
    bins, moments = _seen(MASKS(mel, EVEN, 0))
    assert 0 < (~bins).sum(dim=1).max() <= BANDS * (WIDEST_BAND + 1)
    assert 0 < (~moments).sum(dim=1).max() <= MOMENTS * (LONGEST_MOMENT + 1)


def test_the_seed_alone_decides() -> None:
    mel = torch.rand(2, 200, BINS)
    before = mel.clone()
    assert torch.equal(MASKS(mel, EVEN[:2], 7), MASKS(mel, EVEN[:2], 7)) and torch.equal(mel, before)
    assert not torch.equal(MASKS(mel, EVEN[:2], 7), MASKS(mel, EVEN[:2], 8))
