"""Synthetic utterances: every word in many voices, strings of digits, and words that are not to be heard.

Voices of espeak-ng are many and sound like none; those of flite are four people's, who speak with many accents.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from nano.accents import SPELLINGS
from nano.espeak import ACCENTS, Espeak, Manner
from nano.flite import VOICES, Accent, Flite
from nano.pack import SYNTHETIC_COMPRESSION, Utterance, encode_opus
from nano.words import DIGITS, OTHERS, RATE_HZ, WORDS, voiced_span, word_ends

Int16 = npt.NDArray[np.int16]

_MARGIN = RATE_HZ * 60 // 1000
_STRINGS, _MORE_DIGITS = 4, 10
"""Of each voice."""


@dataclass(frozen=True, slots=True)
class Group:
    """Voices of one kind."""

    source: str
    folder: str
    """Of their sounds, in the pack."""
    accents: tuple[str, ...]
    others: int
    """How many words each says that are not to be heard."""
    salt: str
    """What draws its words apart from those of the other group."""


FLITE = "flite"
"""The source, and the folder, of what flite says."""
_PITCHES_HZ = {"slt": (150, 240), "awb": (95, 170), "rms": (80, 130), "kal16": (85, 160)}
_MORE_OF_FLITE = 20
"""Digits that each speaker says once more."""
ENGLISH = Group("espeak-ng", "synthetic", ACCENTS, 8, "")
FOREIGN = Group("espeak-ng-foreign", "foreign", tuple(SPELLINGS), 0, " foreign")


@dataclass(frozen=True, slots=True)
class Voiced:
    """All that one voice says, in one stream."""

    name: str
    stream: bytes
    utterances: list[Utterance]


def synthesise(voices: int, foreign: int, flite: int, seed: int, jobs: int) -> Iterator[Voiced]:
    """Have so many English, then so many foreign voices, and then speakers of flite, each in a process of its own.

    What a voice says depends on its number and the seed.
    """
    tasks = [
        (group, number, seed)
        for group, count in ((ENGLISH, voices), (FOREIGN, foreign), (None, flite))
        for number in range(count)
    ]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_speak, tasks)


def _speak(task: tuple[Group | None, int, int]) -> Voiced:
    group, number, seed = task
    return _speak_flite(number, seed) if group is None else _speak_espeak(group, number, seed)


def _speak_espeak(group: Group, number: int, seed: int) -> Voiced:
    speaker = Espeak()
    names = [f"{accent}+{variant}" for variant in speaker.variants() for accent in group.accents]
    random.Random(seed).shuffle(names)
    voice = names[number % len(names)]
    spelt = SPELLINGS.get(voice.partition("+")[0], {})
    draw = random.Random(f"{seed} {number}{group.salt}")
    texts = [*WORDS, *draw.choices(DIGITS, k=_MORE_DIGITS), *draw.sample(OTHERS, group.others)]
    texts += [" ".join(draw.choices(DIGITS, k=draw.randint(3, 7))) for _ in range(_STRINGS)]
    sound = f"{group.folder}/{number:03}.opus"
    pieces: list[Int16] = []
    utterances = []
    at = 0
    for text in texts:
        connected = " " in text
        manner = Manner(
            voice,
            words_a_minute=draw.randint(100, 170) if connected else draw.randint(110, 210),
            pitch=draw.randint(20, 80),
            pitch_range=draw.randint(20, 80),
            gap=draw.randint(0, 4) if connected else 0,
        )
        said = " ".join(spelt.get(word, word) for word in text.split())
        samples, ends = _say(speaker, said, manner, draw.getrandbits(31))
        pieces.append(samples)
        utterances.append(
            Utterance(
                sound, at, len(samples), text, ends, f"espeak {voice}", "train", group.source, "none",
                "digits" if connected else "digit" if text in DIGITS else "word",
            )
        )  # fmt: skip
        at += len(samples)
    stream = encode_opus(np.concatenate(pieces), RATE_HZ, number, SYNTHETIC_COMPRESSION)
    return Voiced(sound, stream, utterances)


def _speak_flite(number: int, seed: int) -> Voiced:
    """Have one of the four voices say each word alone, with an accent of its own."""
    speaker, voice = Flite(), VOICES[number % len(VOICES)]
    draw = random.Random(f"{seed} {number} flite")
    accent = Accent.drawn(draw)
    sound = f"{FLITE}/{number:03}.opus"
    pieces: list[Int16] = []
    utterances = []
    at = 0
    for word in (*WORDS, *draw.choices(DIGITS, k=_MORE_OF_FLITE)):
        stretch, pitch_hz = draw.uniform(0.7, 1.15), draw.uniform(*_PITCHES_HZ[voice])
        said, rate_hz = speaker.say(accent.say(word), voice, stretch=stretch, pitch_hz=pitch_hz)
        samples, end, _ = _cut(soxr.resample(said, rate_hz, RATE_HZ).astype(np.int16))
        kind = "digit" if word in DIGITS else "word"
        utterances.append(
            Utterance(
                sound, at, len(samples), word, (end,), f"flite {voice} {number}", "train", FLITE, "none", kind
            )
        )
        pieces.append(samples)
        at += len(samples)
    stream = encode_opus(np.concatenate(pieces), RATE_HZ, number, SYNTHETIC_COMPRESSION)
    return Voiced(sound, stream, utterances)


def _cut(samples: Int16) -> tuple[Int16, int, int]:
    """Cut silence at both ends; return what is left, where its sound ends, and what was cut in front."""
    first, last = voiced_span(samples)
    begin = max(0, first - _MARGIN)
    return samples[begin : last + _MARGIN], last - begin, begin


def _say(speaker: Espeak, text: str, manner: Manner, seed: int) -> tuple[Int16, tuple[int, ...] | None]:
    """Speak, bring to 16 kHz and cut silence at both ends; return samples and the ends of words."""
    spoken = speaker.say(text, manner, seed)
    samples = soxr.resample(spoken.samples, speaker.rate_hz, RATE_HZ).astype(np.int16)
    cut, _, first = _cut(samples)
    starts = tuple(max(0, start * RATE_HZ // speaker.rate_hz - first) for start in spoken.word_starts)
    # Should espeak-ng ever take a text for more or fewer words, nobody knows where they end.
    ends = word_ends(cut, starts) if len(starts) == len(text.split()) else None
    return cut, ends
