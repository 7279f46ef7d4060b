"""Word errors of transcripts: a named normaliser, the alignment of jiwer, an interval by bootstrap."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

NORMALISERS = ("digits", "whisper", "none")
"""digits: whisper's, then every digit is a word.  Whisper's makes one number of "three one four", so that a string
with one wrong digit would count as one word, and wrong."""

RESAMPLES = 2000
_BLOCK = 1 << 22
"""Draws held at once."""


def normaliser(name: str) -> Callable[[str], str]:
    """Return what makes texts comparable, out of `NORMALISERS`."""
    if name == "none":
        return lambda text: " ".join(text.split())
    from whisper_normalizer.english import EnglishTextNormalizer

    whisper: Callable[[str], str] = EnglishTextNormalizer()
    if name == "whisper":
        return whisper
    if name == "digits":
        return lambda text: " ".join(re.sub(r"\d", r" \g<0> ", whisper(text)).split())
    raise ValueError(f"unknown normaliser {name!r}")


def label(name: str) -> str:
    """Name a normaliser with the version of its rules."""
    if name == "none":
        return "none"
    rules = f"whisper's English, whisper_normalizer {version('whisper_normalizer')}"
    return f"digits ({rules}, each digit a word)" if name == "digits" else f"whisper ({rules})"


@dataclass(frozen=True, slots=True)
class Errors:
    """How one transcript differs from what was said."""

    words: int
    """Of what was said."""
    substituted: int
    deleted: int
    inserted: int

    @property
    def total(self) -> int:
        """All word errors."""
        return self.substituted + self.deleted + self.inserted

    @property
    def rate(self) -> float | None:
        """Errors for each word that was said; None where nothing was."""
        return self.total / self.words if self.words else None


def compare(reference: str, hypothesis: str) -> Errors:
    """Align two normalised texts word by word with the fewest errors."""
    words, heard = len(reference.split()), len(hypothesis.split())
    if not words or not heard:  # nothing to align
        return Errors(words, 0, words, heard)
    import jiwer

    found = jiwer.process_words(reference, hypothesis)
    return Errors(words, found.substitutions, found.deletions, found.insertions)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate and the middle 95 % of what it is when the recordings are drawn again; None where it has no value."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "-"
        return f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


@dataclass(frozen=True, slots=True)
class Summary:
    """A set of recordings."""

    files: int
    words: int
    substituted: int
    deleted: int
    inserted: int
    word_errors: Estimate
    files_wrong: Estimate
    """The share of recordings with any error: of single words, the classification error."""
    said_of_nothing: int
    """Words in the transcripts of recordings in which nothing is said."""


def summarise(rows: Sequence[Errors], seed: int) -> Summary:
    """Sum up recordings; the same seed gives the same intervals."""
    errors = np.array([row.total for row in rows], np.float64)
    words = np.array([row.words for row in rows], np.float64)
    return Summary(
        files=len(rows),
        words=sum(row.words for row in rows),
        substituted=sum(row.substituted for row in rows),
        deleted=sum(row.deleted for row in rows),
        inserted=sum(row.inserted for row in rows),
        word_errors=ratio_interval(errors, words, seed),
        files_wrong=ratio_interval((errors > 0).astype(np.float64), np.ones(len(rows)), seed),
        said_of_nothing=sum(row.inserted for row in rows if not row.words),
    )


def ratio_interval(parts: np.ndarray, wholes: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Estimate sum(parts) / sum(wholes) with its 95 % percentile interval by drawing the pairs again."""
    if not wholes.sum():
        return Estimate(None, None, None)
    draw = np.random.default_rng(seed)
    count = len(parts)
    ratios: list[np.ndarray] = []
    left = resamples
    while left:
        size = min(left, max(1, _BLOCK // count))
        picked = draw.integers(0, count, (size, count))
        sums = wholes[picked].sum(axis=1)
        ratios.append(parts[picked].sum(axis=1)[sums > 0] / sums[sums > 0])
        left -= size
    low, high = np.percentile(np.concatenate(ratios), (2.5, 97.5))
    return Estimate(float(parts.sum() / wholes.sum()), float(low), float(high))
