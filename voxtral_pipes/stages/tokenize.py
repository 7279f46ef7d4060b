"""vx-tokenize's stage: bytes of text in, the token ids of one utterance after the other out.

First in the pipe of speech synthesis, so it reads text and not frames.  Each line, or the whole input, is a
text; one that is long becomes several utterances, and each utterance is a stream of its own.  The ids are those
of the text alone: vx-backbone puts the prompt around them.  Text has no clock, so data frames have no tick.
Latency: none; a line goes on as soon as its terminator has come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.models.normalize import normalize
from voxtral_pipes.models.text import MAX_CHARS, MAX_LINE_BYTES, decode, is_blank, lines, split, whole
from voxtral_pipes.stages.base import Hello

MAX_BLANKS = 100_000
"""White space in one run: the pattern of the vocabulary looks back over all of it, and tiktoken's stack ends."""
_MANY_BLANKS = re.compile(rf"(?<!\s)\s{{{MAX_BLANKS}}}")


class Encoder(Protocol):
    """A vocabulary that gives the ids of a text."""

    def encode(self, text: str) -> list[int]:
        """Return the ids, no specials added."""


def tokenize_hello() -> Hello:
    """Describe the output: token ids."""
    return Hello({"i": {"d": "u32", "h": [-1]}})


@dataclass(frozen=True, slots=True)
class Settings:
    """How texts become utterances."""

    whole: bool = False
    """All of the input is one text."""
    normalize: bool = False
    max_chars: int = MAX_CHARS
    """Characters in an utterance; 0 is no limit."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is spoken in one go."""

    ids: list[int]
    line: int
    """Line of the input on which its text begins, from 1."""
    part: int
    """Which piece of that text it is, from 0."""


class Tokenize:
    """Turns input into utterances; `note` and `warn` take lines for the user."""

    name = "vx-tokenize"

    def __init__(
        self,
        vocabulary: Encoder,
        settings: Settings,
        note: Callable[[str], None] = lambda line: None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._vocabulary = vocabulary
        self._settings = settings
        self._note = note
        self._warn = warn

    def utterances(self, pieces: Iterable[bytes]) -> Iterator[Utterance]:
        """Yield the utterances of an input that comes in any pieces, each as soon as its text is complete.

        Raises:
            BadInputError: there is no input, it is not UTF-8, or it is too long.
        """
        counted = _Counted(pieces)
        spoken = 0
        for line, text in self._texts(counted):
            for part, piece in enumerate(split(text, self._settings.max_chars)):
                spoken += 1
                yield Utterance(self._encode(piece, line), line, part)
        if not counted.size:
            raise BadInputError("the input is empty: there is no text to speak")
        if not spoken and self._settings.whole:
            raise BadInputError("the input is blank: there is no text to speak")
        if not spoken:
            self._warn("every line is empty: there is no text to speak")

    def _texts(self, pieces: Iterable[bytes]) -> Iterator[tuple[int, str]]:
        """Yield the texts that are not blank, each with the number of its line."""
        texts = iter([whole(pieces)]) if self._settings.whole else lines(pieces)
        for line, data in enumerate(texts, 1):
            text = decode(data, line)
            if self._settings.normalize:
                text = normalize(text)
            if is_blank(text):
                self._note(f"line {line}: empty, skipped")
            else:
                yield line, text

    def _encode(self, text: str, line: int) -> list[int]:
        # Only what --max-chars lets through can be so long: raised above its default, or one endless word.
        where = f"the text of line {line}"
        if len(text) > MAX_LINE_BYTES // 4 and len(text.encode()) > MAX_LINE_BYTES:
            raise BadInputError(
                f"{where} has over {MAX_LINE_BYTES} bytes in one utterance; lower --max-chars"
            )
        if len(text) >= MAX_BLANKS and _MANY_BLANKS.search(text):
            raise BadInputError(
                f"{where} has {MAX_BLANKS} blanks in a row; lower --max-chars, or remove them"
            )
        return self._vocabulary.encode(text)


def frames(utterances: Iterable[Utterance], source: str) -> Iterator[Frame]:
    """Yield the frames of utterances, a stream for each: `open`, one `data` frame, `end`."""
    for stream, utterance in enumerate(utterances):
        meta = {"source": source, "line": utterance.line, "part": utterance.part}
        yield Frame("open", stream=stream, meta=meta)
        yield Frame("data", stream, 0, ids=utterance.ids)
        yield Frame("end", stream, 1)


class _Counted:
    """Passes pieces on and counts their bytes."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.size += len(piece)
            yield piece
