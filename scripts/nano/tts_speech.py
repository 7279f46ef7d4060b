"""Synthetic speech for the synthesis model: one espeak-ng voice says a list of texts."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from nano.espeak import Espeak, Manner
from nano.pack import Utterance, encode_opus
from nano.tts_texts import Text
from nano.words import RATE_HZ, voiced_span
from voxtral_pipes.config import TTS_RATE_HZ

Int16 = npt.NDArray[np.int16]

CHUNK = 100
"""Texts of one stream."""
_LEAD_MS, _TAIL_MS = 40, 80
_PEAK, _LOUDNESS = 0.9, 10 ** (-22 / 20)
"""Of full scale; the loudness is that of the loudest tenth of frames, so that all utterances are about as loud."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process says in one go."""

    name: str
    speaker: str
    manner: Manner
    texts: tuple[Text, ...]
    seed: int
    number: int


@dataclass(frozen=True, slots=True)
class Spoken:
    """One stream and what is in it."""

    name: str
    stream: bytes
    utterances: list[Utterance]


def tasks(speaker: str, manner: Manner, said: Sequence[Text], seed: int, first: int) -> list[Task]:
    """Divide a list of texts; the streams are numbered from `first`."""
    return [
        Task(f"synthetic/{first + i:03}.opus", speaker, manner, tuple(said[at : at + CHUNK]), seed, first + i)
        for i, at in enumerate(range(0, len(said), CHUNK))
    ]


def speak_all(work: Sequence[Task], jobs: int) -> Iterator[Spoken]:
    """Speak in so many processes; what comes does not depend on their number."""
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_speak, work)


def levelled(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Bring to the loudness that all utterances have, without clipping."""
    frames = samples[: len(samples) // 480 * 480].reshape(-1, 480)
    loud = np.quantile(np.sqrt(np.square(frames).mean(axis=1)), 0.9) if len(frames) else 0.0
    peak = float(np.abs(samples).max(initial=0.0))
    if peak == 0 or loud == 0:
        return samples
    gain = min(_LOUDNESS / float(loud), _PEAK / peak)
    return samples * np.float32(gain)


def _speak(task: Task) -> Spoken:
    speaker = Espeak()
    draw = random.Random(f"{task.seed} {task.number}")
    pieces: list[Int16] = []
    utterances = []
    at = 0
    for one in task.texts:
        samples = _cut(speaker.say(one.text, task.manner, draw.getrandbits(31)).samples, speaker.rate_hz)
        pieces.append(samples)
        utterances.append(
            Utterance(
                task.name,
                at,
                len(samples),
                one.text,
                None,
                task.speaker,
                one.split,
                "espeak-ng",
                "none",
                one.kind,
            )
        )
        at += len(samples)
    return Spoken(task.name, encode_opus(np.concatenate(pieces), TTS_RATE_HZ, task.number), utterances)


def _cut(samples: Int16, rate_hz: int) -> Int16:
    """Bring to 24 kHz and cut silence: a short lead, and enough behind that a frame of silence ends the utterance."""
    wide = soxr.resample(samples.astype(np.float32) / 32768, rate_hz, TTS_RATE_HZ)
    low = soxr.resample(samples.astype(np.float32), rate_hz, RATE_HZ).astype(np.int16)
    first, last = (edge * TTS_RATE_HZ // RATE_HZ for edge in voiced_span(low))
    first = max(0, first - _LEAD_MS * TTS_RATE_HZ // 1000)
    cut = levelled(wide[first : last + _TAIL_MS * TTS_RATE_HZ // 1000])
    rounded: Int16 = np.rint(cut * 32767).astype(np.int16)
    return rounded
