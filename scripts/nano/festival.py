"""Synthetic speech by Festival (Debian's package of that name): voices put together from recordings of people.

Most of them speak another language: they read English words spelt as they would say them (`nano.accents`).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from voxtral_pipes.errors import BadInputError

Int16 = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Voice:
    """A person: the voice's name without `voice_`, the language, how its letters are coded, and Debian's package."""

    name: str
    language: str
    coding: str
    package: str


VOICES = (
    Voice("czech_dita", "cs", "iso-8859-2", "festvox-czech-dita"),
    Voice("czech_krb", "cs", "iso-8859-2", "festvox-czech-krb"),
    Voice("czech_ph", "cs", "iso-8859-2", "festvox-czech-ph"),
    Voice("suo_fi_lj_diphone", "fi", "iso-8859-1", "festvox-suopuhe-lj"),
    Voice("hy_fi_mv_diphone", "fi", "iso-8859-1", "festvox-suopuhe-mv"),
    Voice("lp_diphone", "it", "iso-8859-1", "festvox-italp16k"),
    Voice("pc_diphone", "it", "iso-8859-1", "festvox-itapc16k"),
    Voice("upc_ca_ona_hts", "ca", "iso-8859-1", "festvox-ca-ona-hts"),
    Voice("ked_diphone", "en", "utf-8", "festvox-kdlpc16k"),
)
"""Women and men, and a boy: Czechs, Finns, Italians, a Catalan, and a man of the USA."""

# Pitches are changed between the plan of a text and its sound, by a hook that every voice calls.
_HEAD = """\
(define pitch 1.0)
(define (pitched utt)
  (mapcar (lambda (target) (item.set_feat target 'f0 (* pitch (item.feat target 'f0))))
          (utt.relation.leafs utt 'Target))
  utt)
(define (say text file stretch higher)
  (Parameter.set 'Duration_Stretch stretch)
  (set! pitch higher)
  (set! after_analysis_hooks (list pitched))
  (utt.save.wave (utt.synth (eval (list 'Utterance 'Text text))) file 'riff))
"""


@dataclass(frozen=True, slots=True)
class Line:
    """What is said, how many times as long as usual, and how many times as high."""

    text: str
    stretch: float
    pitch: float


class Festival:
    """The program.

    Raises:
        BadInputError: it is not installed.
    """

    def __init__(self) -> None:
        program = shutil.which("festival")
        if program is None:
            raise BadInputError(
                "festival is not installed: it and its voices are packages of Debian (`scripts/pack-nano-asr -h` "
                "names them); or leave it out, --festival 0"
            )
        self._program = program

    def say(self, voice: Voice, lines: Iterable[Line]) -> list[tuple[Int16, int]]:
        """Speak each line by itself; return samples and their rate in Hz.

        Raises:
            BadInputError: the voice is not installed, or cannot say that.
        """
        with tempfile.TemporaryDirectory() as folder:
            files, calls = [], [_HEAD, f"(voice_{voice.name})\n"]
            for number, line in enumerate(lines):
                files.append(Path(folder) / f"{number}.wav")
                calls.append(f'(say "{line.text}" "{files[-1]}" {line.stretch:.3f} {line.pitch:.3f})\n')
            script = Path(folder) / "lines.scm"
            script.write_text("".join(calls), voice.coding)
            command = [self._program, "--batch", str(script)]
            done = subprocess.run(command, capture_output=True, check=False)
            try:
                return [soundfile.read(file, dtype="int16") for file in files]
            except soundfile.LibsndfileError as error:
                said = done.stderr.decode(errors="replace").strip()
                raise BadInputError(
                    f"festival cannot speak as {voice.name} (package {voice.package}): {said or error}"
                ) from error
