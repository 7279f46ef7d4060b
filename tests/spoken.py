"""Spoken digits for tests of words: an announcer's recordings, joined with pauses; imported by name, not collected."""

from __future__ import annotations

import io
import wave
from functools import cache

import numpy as np
import numpy.typing as npt
import soundfile
from processes import CLIPS

RATE_HZ = 16000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LEAD_MS, _PAUSE_MS = 300, 120
_NOISE = 10 ** (-30 / 20)
"""Of the speech's root mean square: as loud as in a quiet room."""

Float = npt.NDArray[np.float64]


@cache
def _digit(word: str) -> Float:
    samples: Float = soundfile.read(CLIPS / "digits" / f"digits-{DIGITS.index(word)}.opus")[0]
    return samples


def said(text: str, *, noise_seed: int = 0) -> Float:
    """Return a string of digits as one recording at 16 kHz, in -1 to 1."""
    pause = np.zeros(_PAUSE_MS * RATE_HZ // 1000)
    parts = [np.zeros(_LEAD_MS * RATE_HZ // 1000)]
    for word in text.split():
        parts += [_digit(word), pause]
    clean = np.concatenate([*parts, parts[0]])
    noise = np.random.default_rng(noise_seed).normal(0, 1, len(clean))
    return np.clip(clean + noise * _NOISE * np.sqrt(np.square(clean).mean()), -1, 1)


def wav(samples: Float) -> bytes:
    """Return samples as a WAV file of 16 bits."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return out.getvalue()
