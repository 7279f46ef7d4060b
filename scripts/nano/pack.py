"""The packed training file: a zip of Ogg Opus streams, a line of JSON for each utterance in them, and the credits.

Opus because the recordings come as Opus: kept as they are they take 40 kbit/s and lose nothing more, where FLAC takes
122 and 8 bits of mu-law 128.  A zip because every tool opens it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nano.ogg import with_serial
from nano.words import RATE_HZ
from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.atomic import replace_file

Int16 = npt.NDArray[np.int16]

VERSION, KIND = 1, "nano-asr"
_COMPRESSION = 0.9
"""Of libsndfile: some 31 kbit/s at 16 kHz, 35 at 24."""
SYNTHETIC_COMPRESSION = 0.945
"""Some 20 kbit/s at 16 kHz: more voices are worth more than what is lost."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of a sound, and what is said in it."""

    sound: str
    at: int
    """In samples, as the length is."""
    samples: int
    text: str
    ends: tuple[int, ...] | None
    """Where each word ends, in samples from the start of the utterance; None where that is not known."""
    speaker: str
    split: str
    source: str
    licence: str
    kind: str


@dataclass(frozen=True)
class Pack:
    """A packed file that has been read."""

    utterances: list[Utterance]
    sounds: Mapping[str, Int16]
    about: Mapping[str, Any]

    @property
    def pronunciations(self) -> Mapping[str, str]:
        """The phones of each word, if the pack has them."""
        said: Mapping[str, str] = self.about.get("phones", {})
        return said

    @cached_property
    def phones(self) -> list[str]:
        """All of them, in order."""
        return sorted({phone for said in self.pronunciations.values() for phone in said.split()})

    def audio(self, utterance: Utterance) -> Int16:
        """Return the samples of an utterance, int16 at 16 kHz."""
        return self.sounds[utterance.sound][utterance.at : utterance.at + utterance.samples]


def encode_opus(samples: Int16, rate_hz: int, serial: int, compression: float = _COMPRESSION) -> bytes:
    """Encode one channel as Ogg Opus; the same samples and the same serial give the same bytes."""
    import soundfile

    out = io.BytesIO()
    with soundfile.SoundFile(
        out, "w", rate_hz, 1, "OPUS", format="OGG", compression_level=compression
    ) as file:
        for at in range(0, len(samples), rate_hz):  # libsndfile overruns its stack on minutes at once
            file.write(samples[at : at + rate_hz])
    return with_serial(out.getvalue(), serial)


def decode(stream: bytes) -> Int16:
    """Decode what libsndfile reads, to one channel at 16 kHz.

    Raises:
        BadInputError: it cannot, or the rate is another.
    """
    import soundfile

    try:
        samples, rate_hz = soundfile.read(io.BytesIO(stream), dtype="int16", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadInputError(f"a sound cannot be decoded: {error}") from error
    if rate_hz != RATE_HZ:
        raise BadInputError(f"a sound has {rate_hz} samples a second, not {RATE_HZ}")
    one: Int16 = samples[:, 0]
    return one


def write_pack(
    path: Path, utterances: Sequence[Utterance], sounds: Iterable[tuple[str, bytes]], about: Mapping[str, Any]
) -> None:
    """Write a packed file; the same contents give the same bytes."""

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            head = {"version": VERSION, **about}
            lines = "".join(json.dumps(asdict(one), separators=(",", ":")) + "\n" for one in utterances)
            for name, text in (("about.json", json.dumps(head, indent=1)), ("utterances.jsonl", lines)):
                archive.writestr(_entry(name), text, zipfile.ZIP_DEFLATED, 9)
            for name, data in sounds:
                archive.writestr(_entry(name), data, zipfile.ZIP_STORED)

    replace_file(path, write)


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, _EPOCH)


def read_archive(
    path: Path, decode: Callable[[bytes], Int16], refuse: Callable[[Mapping[str, Any]], str | None]
) -> tuple[Mapping[str, Any], list[dict[str, Any]], dict[str, Int16]]:
    """Read a packed file and decode its sounds, on all cores: what it is about, its utterances as rows, its sounds.

    `refuse` says what is wrong with what it is about, if anything is.

    Raises:
        BadInputError: it is not one, damaged, or refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("about.json"))
            if (wrong := refuse(about)) is not None:
                raise BadInputError(f"{path}: {wrong}")
            rows = [json.loads(line) for line in archive.read("utterances.jsonl").splitlines()]
            names = list(dict.fromkeys(row["sound"] for row in rows))
            streams = [archive.read(name) for name in names]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise BadInputError(f"{path}: not a packed training file: {error}") from error
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return about, rows, dict(zip(names, pool.map(decode, streams), strict=True))


def foreign(about: Mapping[str, Any], model: str) -> str | None:
    """Say what is wrong where a file is not of this version, or of another model."""
    ours = (about.get("version"), about.get("model")) == (VERSION, model)
    return None if ours else f"not training data of {model}, version {VERSION}"


def read_pack(path: Path) -> Pack:
    """Read a packed file of the recogniser.

    Raises:
        BadInputError: it is not one, or damaged.
    """
    about, rows, sounds = read_archive(path, decode, lambda about: foreign(about, KIND))
    utterances = [
        Utterance(**{**row, "ends": tuple(row["ends"]) if row["ends"] is not None else None}) for row in rows
    ]
    for one in utterances:
        if one.at + one.samples > len(sounds[one.sound]):
            raise BadInputError(f"{path}: {one.sound} is shorter than its utterances")
    return Pack(utterances, sounds, about)
