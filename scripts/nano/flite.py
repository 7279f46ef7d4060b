"""Synthetic speech by flite (Debian's package of that name): four voices made from recordings of people.

What they say is given as phones, so that they can be made to speak as people do whose own language has other sounds.
"""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nano.words import WORDS
from voxtral_pipes.errors import BadInputError

Int16 = npt.NDArray[np.int16]

VOICES = ("slt", "awb", "rms", "kal16")
"""A woman and a man of the USA, a Scot, and an older voice of the USA that is put together from diphones."""
_SAID = (
    "z ih r ow; w ah n; t uw; th r iy; f ao r; f ay v; s ih k s; s eh v ax n; ey t; n ay n; b ae k w er d; b eh d; "
    "b er d; k ae t; d ao g; d aw n; f aa l ow; f ao r w er d; g ow; hh ae p iy; hh aw s; l er n; l eh f t; "
    "m aa r v ih n; n ow; ao f; aa n; r ay t; sh iy l ax; s t aa p; t r iy; ah p; v ih zh uw ax l; w aw; y eh s"
)
PHONES = dict(zip(WORDS, (said.split() for said in _SAID.split("; ")), strict=True))
"""How each word is said, in flite's phones."""
_HEARD = {
    "th": ("s", "f", "t", "z"), "ih": ("iy", "iy", "eh"), "iy": ("ih",), "ae": ("eh", "aa", "ah"),
    "ah": ("aa", "ao", "ae", "uh"), "ao": ("aa", "ow", "uh"), "ow": ("ao", "ao", "uh"), "ey": ("eh", "eh iy", "ae"),
    "er": ("eh r", "ao r", "ah", "uh r"), "ay": ("aa iy", "aa", "ao iy"), "aw": ("aa uw", "aa", "ao"),
    "uw": ("uh", "y uw"), "eh": ("ae", "ey", "ih"), "aa": ("ao", "ah"), "ax": ("ah", "eh", "ao"), "hh": ("",),
    "v": ("f", "w", "b"), "w": ("v", "uw"), "z": ("s",), "zh": ("sh", "z"), "sh": ("s",), "r": ("w", "l"),
}  # fmt: skip
"""What speakers of other languages say for a phone."""
_LAST = {"d": "t", "g": "k", "v": "f", "z": "s", "b": "p"}
"""What it becomes at the end of a word where voices are not kept up there."""
_CHANGED, _HARDENED, _BEFORE_S = 0.35, 0.4, 0.15
"""How often a phone is another than the usual one, an end is without voice, and a vowel comes before s and a stop."""
_TREE = ("t", "r", "iy")


@dataclass(frozen=True, slots=True)
class Accent:
    """What a speaker says for some phones, for the last one, and before s and a stop."""

    heard: dict[str, str]
    hardens: bool
    eases: bool

    @classmethod
    def drawn(cls, draw: random.Random) -> Accent:
        """Draw one; some speakers have hardly any."""
        share = _CHANGED * draw.choice((0.0, 0.5, 1.0, 1.0))
        heard = {phone: draw.choice(others) for phone, others in _HEARD.items() if draw.random() < share}
        return cls(heard, draw.random() < _HARDENED, draw.random() < _BEFORE_S)

    def say(self, word: str) -> list[str]:
        """Return the phones of a word, said so; `three` never becomes `tree`."""
        plain = PHONES[word]
        phones = " ".join(self.heard.get(phone, phone) for phone in plain).split()
        if tuple(phones) == _TREE and word != "tree":
            phones = plain
        if self.hardens:
            phones = [*phones[:-1], _LAST.get(phones[-1], phones[-1])]
        if self.eases and plain[:2] == ["s", "t"]:
            phones = ["eh", *phones]
        return phones


class Flite:
    """The program.

    Raises:
        BadInputError: it is not installed.
    """

    def __init__(self) -> None:
        program = shutil.which("flite")
        if program is None:
            raise BadInputError(
                "flite is not installed: it is the package flite of Debian; or leave it out, --flite 0"
            )
        self._program = program

    def say(self, phones: Sequence[str], voice: str, *, stretch: float, pitch_hz: float) -> tuple[Int16, int]:
        """Speak phones, `stretch` times as long as usual and about so high; return samples and their rate in Hz."""
        import soundfile

        settings = {"duration_stretch": stretch, "int_f0_target_mean": pitch_hz}
        given = [part for name, value in settings.items() for part in ("--setf", f"{name}={value:.3f}")]
        said = " ".join(("pau", *phones, "pau"))
        command = [self._program, "-voice", voice, *given, "-p", said, "-o", "/dev/stdout"]
        done = subprocess.run(command, capture_output=True, check=False)
        try:
            samples, rate_hz = soundfile.read(io.BytesIO(done.stdout), dtype="int16")
        except soundfile.LibsndfileError as error:
            raise BadInputError(
                f"flite cannot say {said!r}: {done.stderr.decode(errors='replace')}"
            ) from error
        return samples, rate_hz
