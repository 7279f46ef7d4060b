"""Synthetic utterances: every word in many voices, strings of digits, and words that are not to be heard.

Voices of espeak-ng are many and sound like none; those of flite are four people's, who speak with many accents, and
those of Festival nine other people's, most of whom speak other languages.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from nano.accents import SPELLINGS
from nano.espeak import ACCENTS, Espeak, Manner
from nano.festival import VOICES as FESTIVAL_VOICES
from nano.festival import Festival, Line
from nano.flite import VOICES as FLITE_VOICES
from nano.flite import Accent, Flite
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
FESTIVAL = "festival"
_MORE_OF_PEOPLE = 20
"""Digits that each speaker of flite or Festival says once more."""
ENGLISH = Group("espeak-ng", "synthetic", ACCENTS, 8, "")
FOREIGN = Group("espeak-ng-foreign", "foreign", tuple(SPELLINGS), 0, " foreign")


@dataclass(frozen=True, slots=True)
class Voiced:
    """All that one voice says, in one stream."""

    name: str
    stream: bytes
    utterances: list[Utterance]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many voices of each kind speak: English and foreign ones of espeak-ng, speakers of flite and Festival."""

    voices: int
    foreign: int
    flite: int
    festival: int

    @property
    def total(self) -> int:
        """How many there are in all."""
        return self.voices + self.foreign + self.flite + self.festival


def synthesise(counts: Counts, seed: int, jobs: int) -> Iterator[Voiced]:
    """Have voices speak, kind after kind, each in a process of its own.

    What a voice says depends on its kind, its number and the seed.
    """
    kinds: list[tuple[Callable[[int, int], Voiced], int]] = [
        (_speak_english, counts.voices),
        (_speak_foreign, counts.foreign),
        (_speak_flite, counts.flite),
        (_speak_festival, counts.festival),
    ]
    tasks = [(speak, number, seed) for speak, count in kinds for number in range(count)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_speak, tasks)


def _speak(task: tuple[Callable[[int, int], Voiced], int, int]) -> Voiced:
    speak, number, seed = task
    return speak(number, seed)


def _speak_english(number: int, seed: int) -> Voiced:
    return _speak_espeak(ENGLISH, number, seed)


def _speak_foreign(number: int, seed: int) -> Voiced:
    return _speak_espeak(FOREIGN, number, seed)


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
    speaker, voice = Flite(), FLITE_VOICES[number % len(FLITE_VOICES)]
    draw = random.Random(f"{seed} {number} flite")
    accent = Accent.drawn(draw)
    words = (*WORDS, *draw.choices(DIGITS, k=_MORE_OF_PEOPLE))
    said = []
    for word in words:
        stretch, pitch_hz = draw.uniform(0.7, 1.15), draw.uniform(*_PITCHES_HZ[voice])
        said.append(speaker.say(accent.say(word), voice, stretch=stretch, pitch_hz=pitch_hz))
    return _voiced(FLITE, number, voice, words, said)


def _speak_festival(number: int, seed: int) -> Voiced:
    """Have one of the voices say each word alone, as people of its language do."""
    voice = FESTIVAL_VOICES[number % len(FESTIVAL_VOICES)]
    draw = random.Random(f"{seed} {number} festival")
    spelt = SPELLINGS.get(voice.language, {})
    words = (*WORDS, *draw.choices(DIGITS, k=_MORE_OF_PEOPLE))
    high = draw.uniform(0.8, 1.25)
    lines = [
        Line(spelt.get(word, word), draw.uniform(0.6, 1.15), high * draw.uniform(0.9, 1.1)) for word in words
    ]
    return _voiced(FESTIVAL, number, voice.name, words, Festival().say(voice, lines))


def _voiced(
    source: str, number: int, voice: str, words: Sequence[str], said: Sequence[tuple[Int16, int]]
) -> Voiced:
    """Put what a speaker has said of single words, samples and their rates, into one stream."""
    sound = f"{source}/{number:03}.opus"
    pieces: list[Int16] = []
    utterances = []
    at = 0
    for word, (spoken, rate_hz) in zip(words, said, strict=True):
        samples, end, _ = _cut(soxr.resample(spoken, rate_hz, RATE_HZ).astype(np.int16))
        kind = "digit" if word in DIGITS else "word"
        utterances.append(
            Utterance(
                sound,
                at,
                len(samples),
                word,
                (end,),
                f"{source} {voice} {number}",
                "train",
                source,
                "none",
                kind,
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
