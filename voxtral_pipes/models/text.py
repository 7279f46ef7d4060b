"""Lines of text from bytes, and long texts cut into utterances that a voice can speak (vx-tokenize(1)).

Carried between calls: the bytes of a line, or of a whole text, that has not ended yet.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

from voxtral_pipes.errors import BadInputError

MAX_LINE_BYTES = 1_000_000
"""A token has a byte at least, so the ids of such a line are below `formats.frame.MAX_ITEMS`."""
MAX_WHOLE_BYTES = 16 << 20
"""Some ten books: all of it must be in memory before the first word can be spoken."""
MAX_CHARS = 500
"""Some 35 s of English, 2 minutes of Chinese: below the 2048 frames (164 s) that vx-backbone gives an utterance
(design.md section 3)."""

_CLOSERS = "\"'”’»›)\\]}」』）】〉》"
# Repetition is bounded, so that a text of full stops alone is not searched again from each of them.
_SENTENCE_END = re.compile(
    rf"[.!?…؟۔।॥][.!?…؟۔।॥{_CLOSERS}]{{0,15}}(?=\s)|[。！？｡][。！？｡{_CLOSERS}]{{0,15}}|\n[^\S\n]*\n"
)
"""An end needs white space behind it, but for the scripts that write none, and for the end of a paragraph."""
_CLAUSE_END = re.compile(rf"[,;:،؛–—][{_CLOSERS}]{{0,3}}(?=\s)|—|[、，；：]")
_SPACE = re.compile(r"\s")
_ANY_BREAK = re.compile(f"{_SENTENCE_END.pattern}|{_CLAUSE_END.pattern}|{_SPACE.pattern}")
_LAST_WORD = re.compile(r"([^\W\d_]+)\.$")
_ABBREVIATED = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "cf", "capt", "col", "gen",
    "lt", "sgt", "rev", "hon", "inc", "ltd", "vol", "fig", "mme", "mlle", "sig", "dott", "srta",
    "hr", "fr", "nr", "bzw", "ca", "usw", "dhr", "mevr",
})  # fmt: skip
"""Words that a full stop follows inside a sentence, in the languages of the voices."""
_WORD_BEFORE = 40
"""Characters to look back for such a word."""


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each line without its terminator (LF or CR LF) as soon as it is complete, the last one at the end.

    Raises:
        BadInputError: a line is longer than `MAX_LINE_BYTES`.
    """
    held = bytearray()
    number = 1
    for piece in pieces:
        *complete, rest = piece.split(b"\n")
        for end in complete:
            _check_line(len(held) + len(end), number)
            yield bytes(held + end).removesuffix(b"\r")
            held.clear()
            number += 1
        held += rest
        # The CR of a terminator that is not complete yet is no part of the line.
        _check_line(len(held), number)
    if held:
        yield bytes(held)


def _check_line(size: int, number: int) -> None:
    if size > MAX_LINE_BYTES + 1:  # a CR may follow the longest line
        raise BadInputError(
            f"line {number} is longer than {MAX_LINE_BYTES} bytes: break it into lines, or give --whole"
        )


def whole(pieces: Iterable[bytes]) -> bytes:
    """Return all of the input as one text, without the terminator of its last line.

    Raises:
        BadInputError: it is longer than `MAX_WHOLE_BYTES`.
    """
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) > MAX_WHOLE_BYTES:
            raise BadInputError(
                f"the text is longer than {MAX_WHOLE_BYTES >> 20} MiB: without --whole it is read line by line"
            )
    return bytes(held).removesuffix(b"\n").removesuffix(b"\r") if held.endswith(b"\n") else bytes(held)


def decode(data: bytes, first_line: int) -> str:
    """Decode UTF-8 that begins at the start of line `first_line`; nothing is normalised.

    A byte order mark before all of it is no text (RFC 3629, section 6), and would be spoken as some.

    Raises:
        BadInputError: it is no UTF-8; the message names line and byte, both from 1.
    """
    marked = len(codecs.BOM_UTF8) if first_line == 1 and data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[marked:].decode()
    except UnicodeDecodeError as error:
        at = marked + error.start
        line = first_line + data.count(b"\n", 0, at)
        byte = at - data.rfind(b"\n", 0, at)
        raise BadInputError(
            f"line {line}, byte {byte} (0x{data[at]:02x}): this is not UTF-8; convert the text with iconv(1)"
        ) from error


def is_blank(text: str) -> bool:
    """Tell whether there is nothing to speak: no character, or white space alone."""
    return not text or text.isspace()


def split(text: str, max_chars: int) -> Iterator[str]:
    """Cut a text into utterances of at most `max_chars` characters; 0 is no limit.

    A text that fits is given as it is.  Otherwise each utterance ends at the last end of a sentence that fits,
    else behind the last comma or dash, else at the last white space; the white space at a cut is dropped, and
    all else is kept in its order.  A word that does not fit stays whole.
    """
    if not max_chars or len(text) <= max_chars:
        yield text
        return
    end = len(text.rstrip())
    start = _skip_space(text, 0, end)
    while end - start > max_chars:
        cut = _cut(text, start, start + max_chars) or _first_break(text, start + max_chars, end)
        yield text[start:cut].rstrip()
        start = _skip_space(text, cut, end)
    if start < end:
        yield text[start:end]


def _skip_space(text: str, start: int, end: int) -> int:
    while start < end and text[start].isspace():
        start += 1
    return start


def _cut(text: str, start: int, limit: int) -> int | None:
    """Return the best place to cut in start+1..limit, or None where one word fills it all."""
    # One character more is searched: the white space behind the end of a sentence, which need not fit.
    sentence = clause = space = None
    for match in _SENTENCE_END.finditer(text, start, limit + 1):
        if match.end() <= limit and not _goes_on(text, match):
            sentence = match.end()
    if sentence:
        return sentence
    for match in _CLAUSE_END.finditer(text, start, limit + 1):
        if match.end() <= limit:
            clause = match.end()
    if clause:
        return clause
    for match in _SPACE.finditer(text, start, limit + 1):
        space = match.start()
    return space


def _goes_on(text: str, end: re.Match[str]) -> bool:
    """Tell whether what looks like the end of a sentence is not: an abbreviation, or small letters behind it."""
    behind = text[end.end() : end.end() + 8].lstrip()
    if behind[:1].islower():
        return True
    if not end.group().startswith("."):
        return False
    word = _LAST_WORD.search(text[max(0, end.start() - _WORD_BEFORE) : end.start() + 1])
    # A single letter is an initial.
    return word is not None and (len(word[1]) == 1 or word[1].lower() in _ABBREVIATED)


def _first_break(text: str, start: int, end: int) -> int:
    """Return where the word that goes on at `start` ends."""
    found = _ANY_BREAK.search(text, start, end)
    return found.end() if found else end
