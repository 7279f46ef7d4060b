"""Synthetic utterances: every word in many voices, strings of digits, and words that are not to be heard."""

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


ENGLISH = Group("espeak-ng", "synthetic", ACCENTS, 8, "")
FOREIGN = Group("espeak-ng-foreign", "foreign", tuple(SPELLINGS), 0, " foreign")


@dataclass(frozen=True, slots=True)
class Voiced:
    """All that one voice says, in one stream."""

    name: str
    stream: bytes
    utterances: list[Utterance]


def synthesise(voices: int, foreign: int, seed: int, jobs: int) -> Iterator[Voiced]:
    """Have so many English and then so many foreign voices speak, each in a process of its own.

    What a voice says depends on its number and the seed.
    """
    tasks = [
        (group, number, seed)
        for group, count in ((ENGLISH, voices), (FOREIGN, foreign))
        for number in range(count)
    ]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_speak, tasks)


def _speak(task: tuple[Group, int, int]) -> Voiced:
    group, number, seed = task
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


def _say(speaker: Espeak, text: str, manner: Manner, seed: int) -> tuple[Int16, tuple[int, ...] | None]:
    """Speak, bring to 16 kHz and cut silence at both ends; return samples and the ends of words."""
    spoken = speaker.say(text, manner, seed)
    samples = soxr.resample(spoken.samples, speaker.rate_hz, RATE_HZ).astype(np.int16)
    first, last = voiced_span(samples)
    first, last = max(0, first - _MARGIN), min(len(samples), last + _MARGIN)
    starts = tuple(max(0, start * RATE_HZ // speaker.rate_hz - first) for start in spoken.word_starts)
    cut = samples[first:last]
    # Should espeak-ng ever take a text for more or fewer words, nobody knows where they end.
    ends = word_ends(cut, starts) if len(starts) == len(text.split()) else None
    return cut, ends
