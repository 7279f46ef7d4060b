"""The packed training file of the synthesis model: that of `nano.pack`, with sounds of two rates, read at 24 kHz."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from nano.pack import Utterance, foreign, read_archive
from nano.words import RATE_HZ as RECORDED_HZ
from voxtral_pipes.config import TTS_RATE_HZ
from voxtral_pipes.errors import BadInputError

Int16 = npt.NDArray[np.int16]

KIND = "nano-tts"


@dataclass(frozen=True, slots=True)
class Speech:
    """A packed file that has been read."""

    utterances: list[Utterance]
    voices: tuple[str, ...]
    sounds: Mapping[str, Int16]
    about: Mapping[str, Any]

    def audio(self, one: Utterance) -> Int16:
        """Return the samples of an utterance, int16 at 24 kHz."""
        return self.sounds[one.sound][one.at : one.at + one.samples]

    def voice(self, one: Utterance) -> int:
        """Return the number of the voice that an utterance is to teach."""
        name: str = self.about["speakers"][one.speaker]
        return self.voices.index(name)


def decode(stream: bytes) -> Int16:
    """Decode one channel at 24 kHz; what has 16 kHz is resampled, clipped where that overshoots.

    Raises:
        BadInputError: it cannot, or the rate is another.
    """
    import soundfile

    try:
        samples, rate_hz = soundfile.read(io.BytesIO(stream), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadInputError(f"a sound cannot be decoded: {error}") from error
    one = samples[:, 0]
    if rate_hz == RECORDED_HZ:
        one = soxr.resample(one, RECORDED_HZ, TTS_RATE_HZ)
    elif rate_hz != TTS_RATE_HZ:
        raise BadInputError(f"a sound has {rate_hz} samples a second, not {RECORDED_HZ} or {TTS_RATE_HZ}")
    rounded: Int16 = np.clip(np.rint(one * 32768), -32768, 32767).astype(np.int16)
    return rounded


def read_speech(path: Path) -> Speech:
    """Read a packed file and decode its sounds, on all cores.

    Raises:
        BadInputError: it is not one, or damaged.
    """
    about, rows, sounds = read_archive(path, decode, lambda about: foreign(about, KIND))
    utterances = [Utterance(**{**row, "ends": None}) for row in rows]
    for one in utterances:
        if one.at + one.samples > len(sounds[one.sound]) or one.speaker not in about["speakers"]:
            raise BadInputError(f"{path}: {one.sound} does not hold what its utterances say")
    return Speech(utterances, tuple(sorted(set(about["speakers"].values()))), sounds, about)
