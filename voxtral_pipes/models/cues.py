"""Subtitle cues out of a stream of timed text: where to cut, how to break lines, how long to show.

The rules are those that subtitlers use: at most two lines of 42 columns and 6 s; a cue ends where a sentence
ends, where nobody speaks for 0.8 s, or before the word that would make it too long or too wide, then rather
after a comma.  Cuts depend on text and times alone, and a cue is given as soon as nothing can join it.
Carried are the open cue (two lines at most) and the time up to which cues have been shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unicodedata import category, east_asian_width

from voxtral_pipes.models.tokens import TOKEN_MS

LINE_COLUMNS = 42
MAX_CUE_MS = 6000
PAUSE_MS = 800
MIN_SHOWN_MS = 1000
"""Shorter cues stay this long where the next one leaves room: one word is 80 ms, which nobody can read."""
MIN_SENTENCE_COLUMNS = 12
"""A shorter sentence that also took less than MIN_SHOWN_MS ("Yes.") shares its cue with the next one."""

_SENTENCE = tuple(".!?…。！？｡؟۔।॥")
_CLAUSE = tuple(",;:،؛、，；：")
_CLOSERS = "\"'”’»›)]}」』）】》〉"
_TITLES = frozenset(
    {"mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "vs.", "e.g.", "i.e.", "m.", "mme.", "sr.", "sra."}
)
_ATOM_CHARS_PER_COLUMN = 4  # marks have no width; a run of them must still end


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle, `start_ms` to `end_ms`; cues of one stream never overlap."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    text: str
    """The lines as one."""


@dataclass(slots=True)
class _Atom:
    """What a line break does not divide: a word, or one character of a script written without spaces."""

    text: str
    columns: int
    start_ms: int
    end_ms: int
    space: bool
    """A space stands before it."""

    @property
    def width(self) -> int:
        return max(self.columns, len(self.text) // _ATOM_CHARS_PER_COLUMN)


class CueCutter:
    """Cuts one stream into cues."""

    def __init__(self) -> None:
        self._atoms: list[_Atom] = []
        self._space = False
        self._shown_ms = 0

    def add(self, text: str, start_ms: int, end_ms: int) -> Iterator[Cue]:
        """Take the text of one token and give the cues that it completes; white space separates words."""
        yield from self.wait(start_ms)
        for char in text:
            if char.isspace():
                self._space = True
            elif category(char) != "Cc":  # a control character has no place in a subtitle
                yield from self._put(char, start_ms, end_ms)

    def wait(self, now_ms: int) -> Iterator[Cue]:
        """Take the time of a token, with or without text: a pause ends the cue."""
        if self._atoms and now_ms - self._atoms[-1].end_ms >= PAUSE_MS:
            yield self._cut(len(self._atoms), now_ms)

    def flush(self) -> Iterator[Cue]:
        """Give the last cue."""
        if self._atoms:
            yield self._cut(len(self._atoms), None)

    def _put(self, char: str, start_ms: int, end_ms: int) -> Iterator[Cue]:
        atoms = self._atoms
        columns = _columns(char)
        apart = not atoms or self._space or _may_break(atoms[-1].text[-1], char)
        if apart and atoms and self._is_sentence():
            yield self._cut(len(atoms), start_ms)
        if apart or atoms[-1].width + columns > LINE_COLUMNS:
            atoms.append(_Atom(char, columns, start_ms, end_ms, self._space and bool(atoms)))
        else:
            atoms[-1].text += char
            atoms[-1].columns += columns
            atoms[-1].end_ms = end_ms
        self._space = False
        while len(atoms) > 1 and not self._fits():
            best = self._best_cut()
            yield self._cut(best, atoms[best].start_ms)

    def _is_sentence(self) -> bool:
        first, last = self._atoms[0], self._atoms[-1]
        if not _ends_sentence(last.text):
            return False
        return _width(self._atoms) >= MIN_SENTENCE_COLUMNS or last.end_ms - first.start_ms >= MIN_SHOWN_MS

    def _fits(self) -> bool:
        atoms = self._atoms
        return atoms[-1].end_ms - atoms[0].start_ms <= MAX_CUE_MS and _wrap(atoms) is not None

    def _best_cut(self) -> int:
        """Return how many atoms to show: up to a clause that ends in the second half, else all but one."""
        whole = _width(self._atoms)
        for count in range(len(self._atoms) - 1, 0, -1):
            if 2 * _width(self._atoms[:count]) < whole:
                break
            last = self._atoms[count - 1].text.rstrip(_CLOSERS)
            if last.endswith(_CLAUSE) or _ends_sentence(last):
                return count
        return len(self._atoms) - 1

    def _cut(self, count: int, next_ms: int | None) -> Cue:
        shown, self._atoms[:] = self._atoms[:count], self._atoms[count:]
        if self._atoms:
            self._atoms[0].space = False
        start = max(shown[0].start_ms, self._shown_ms)
        readable = start + MIN_SHOWN_MS
        end = max(shown[-1].end_ms, readable if next_ms is None else min(readable, next_ms), start + TOKEN_MS)
        self._shown_ms = end
        lines = _wrap(shown) or (_join(shown),)
        return Cue(start, end, lines, _join(shown))


def _wrap(atoms: Sequence[_Atom]) -> tuple[str, ...] | None:
    """Break into one line, else into the two most equal ones; None where two are not enough."""
    whole = _width(atoms)
    if whole <= LINE_COLUMNS:
        return (_join(atoms),)
    best, longest = 0, LINE_COLUMNS + 1
    left = 0
    for count, atom in enumerate(atoms[:-1], 1):
        left += atom.width + (atom.space and count > 1)
        right = whole - left - atoms[count].space
        if max(left, right) < longest:
            best, longest = count, max(left, right)
    return (_join(atoms[:best]), _join(atoms[best:])) if best else None


def _join(atoms: Sequence[_Atom]) -> str:
    return "".join(" " * (atom.space and at > 0) + atom.text for at, atom in enumerate(atoms))


def _width(atoms: Sequence[_Atom]) -> int:
    return sum(atom.width + (atom.space and at > 0) for at, atom in enumerate(atoms))


def _columns(char: str) -> int:
    if category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def _may_break(before: str, after: str) -> bool:
    """Tell whether a line may break between two characters without a space: in Chinese and Japanese."""
    if not (_is_ideographic(before) or _is_ideographic(after)):
        return False
    return category(after) not in ("Pe", "Pf", "Po", "Lm", "Mn") and category(before) not in ("Ps", "Pi")


def _is_ideographic(char: str) -> bool:
    return east_asian_width(char) in "WF" and not "가" <= char <= "힣" and category(char) != "So"


def _ends_sentence(word: str) -> bool:
    bare = word.rstrip(_CLOSERS)
    if not bare.endswith(_SENTENCE):
        return False
    is_initial = len(bare) == 2 and bare[0].isupper() and bare[0].isascii() and bare[1] == "."
    return not is_initial and bare.lower() not in _TITLES
