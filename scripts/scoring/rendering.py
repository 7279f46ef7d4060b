"""espeak-ng's rendering of texts, to compare a model with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nano.espeak import Espeak, Manner

from scoring.speech import Spoken
from voxtral_pipes.config import TTS_FRAME_TICKS, TTS_RATE_HZ
from voxtral_pipes.errors import BadInputError


def render(texts: Sequence[str], voice: str, folder: Path) -> list[Spoken]:
    """Speak texts into `folder`, `INDEX.wav`, at the rate of the library.

    Raises:
        BadInputError: there is no such voice.
        ImportError: the package espeakng-loader or soundfile is not installed.
    """
    import soundfile

    library, spoken = Espeak(), []
    for index, text in enumerate(texts):
        try:
            samples = library.say(text, Manner(voice)).samples
        except ValueError as error:
            raise BadInputError(str(error)) from error
        audio = folder / f"{index:05}.wav"
        soundfile.write(audio, samples, library.rate_hz, subtype="PCM_16")
        frames = -(-len(samples) * TTS_RATE_HZ // (library.rate_hz * TTS_FRAME_TICKS))
        spoken.append(Spoken(index, audio, frames, ended=True))
    return spoken
