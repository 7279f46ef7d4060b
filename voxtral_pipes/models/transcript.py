"""How a transcript is written: plain text, JSON lines, or subtitles (vx-detok(1)).

A format takes the pieces of one stream and gives items; a printer, which all streams share, makes them text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.models.cues import Cue, CueCutter
from voxtral_pipes.models.tokens import TOKEN_MS, Vocabulary

FORMATS = ("text", "jsonl", "srt", "vtt", "tsv")


class NamedVocabulary(Vocabulary, Protocol):
    """A vocabulary that can name its special tokens."""

    def special_name(self, token: int) -> str:
        """Return the string of a special id."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token: the text that became complete with it, and when it was spoken."""

    token: int | None
    """None for what an unfinished code point leaves at the end of a stream."""
    text: str
    start_ms: int | None
    """None where the input has no clock."""
    logprob: float | None = None

    @property
    def end_ms(self) -> int | None:
        """One position after the start."""
        return None if self.start_ms is None else self.start_ms + TOKEN_MS


class Format(Protocol):
    """How one stream is written: pieces in, items out; items may wait for the turn of their stream."""

    def add(self, piece: Piece) -> Iterator[str | Cue]:
        """Take one piece."""

    def end(self) -> Iterator[str | Cue]:
        """Give what is left."""


class _Text:
    """The words alone: one leading space dropped, a newline after a stream that printed anything."""

    def __init__(self) -> None:
        self._at_start = True
        self._printed = False

    def add(self, piece: Piece) -> Iterator[str]:
        text = piece.text
        if text and self._at_start:
            self._at_start = False
            text = text.removeprefix(" ")
        if text:
            self._printed = True
            yield text

    def end(self) -> Iterator[str]:
        if self._printed:
            yield "\n"


class _Cues:
    """Subtitles; srt, vtt and tsv have the same cuts."""

    def __init__(self) -> None:
        self._cutter = CueCutter()

    def add(self, piece: Piece) -> Iterator[Cue]:
        if piece.start_ms is None or piece.end_ms is None:
            if piece.token is None:
                return
            raise BadInputError("the token ids carry no times, which subtitles need; use --format text")
        if piece.text:
            yield from self._cutter.add(piece.text, piece.start_ms, piece.end_ms)
        else:
            yield from self._cutter.wait(piece.start_ms)

    def end(self) -> Iterator[Cue]:
        yield from self._cutter.flush()


class _Lines:
    """One JSON object for each token (fields: vx-detok(1))."""

    def __init__(self, stream: int, vocabulary: NamedVocabulary) -> None:
        self._stream = stream
        self._vocabulary = vocabulary

    def add(self, piece: Piece) -> Iterator[str]:
        special = piece.token is not None and piece.token < self._vocabulary.n_special
        line: dict[str, Any] = {
            "stream": self._stream,
            "token": piece.token,
            "special": special,
            "text": piece.text,
        }
        if special and piece.token is not None:
            line["name"] = self._vocabulary.special_name(piece.token)
        line["start"], line["end"] = piece.start_ms, piece.end_ms
        if piece.logprob is not None:  # JSON has no NaN
            line["logprob"] = float(f"{piece.logprob:.7g}") if math.isfinite(piece.logprob) else None
        yield json.dumps(line, ensure_ascii=False) + "\n"

    def end(self) -> Iterator[str]:
        yield from ()


class Printer:
    """Turns items into the text of one format; numbers the cues of srt through all streams."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._cues = 0

    def head(self) -> str:
        """Return what the output begins with."""
        return {"vtt": "WEBVTT\n\n", "tsv": "start\tend\ttext\n"}.get(self._form, "")

    def show(self, item: str | Cue) -> str:
        """Return one item as text."""
        if isinstance(item, str):
            return item
        self._cues += 1
        if self._form == "tsv":
            return f"{item.start_ms}\t{item.end_ms}\t{item.text}\n"
        if self._form == "vtt":
            body = "\n".join(item.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return f"{_clock(item.start_ms, '.')} --> {_clock(item.end_ms, '.')}\n{body}\n\n"
        body = "\n".join(item.lines).replace("-->", "->")
        return f"{self._cues}\n{_clock(item.start_ms, ',')} --> {_clock(item.end_ms, ',')}\n{body}\n\n"


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}{point}{ms:03}"


def start(form: str, stream: int, vocabulary: NamedVocabulary) -> Format:
    """Begin one stream in a format out of `FORMATS`."""
    if form == "text":
        return _Text()
    return _Lines(stream, vocabulary) if form == "jsonl" else _Cues()
