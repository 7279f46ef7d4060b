"""What was said, how it was spoken and what was heard of it; and sums of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scoring.pipes import Heard
from scoring.score import Errors, Estimate, Summary, compare, ratio_interval, summarise
from scoring.speech import Spoken
from scoring.texts import Text

Key = tuple[str, int]
"""Who speaks, and the number of the text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text, spoken by one speaker and heard by one judge."""

    judge: str
    speaker: str
    number: int
    """Of the text, from 0."""
    text: Text
    spoken: Spoken
    empty: bool
    """Nothing is said, or only silence; the judge was not asked then."""
    heard: str
    reference: str
    """What was said, normalised; so with `hypothesis`, what was heard."""
    hypothesis: str
    errors: Errors
    error: str | None
    """Why it was not spoken or not heard; such rows are not summed."""

    @property
    def end(self) -> str:
        """How the speech ended: `ended`, `limit`, or `empty`."""
        if self.empty:
            return "empty"
        return "ended" if self.spoken.ended else "limit"


def row_of(
    judge: str,
    key: Key,
    text: Text,
    spoken: Spoken,
    heard: Heard,
    empty: bool,
    normalise: Callable[[str], str],
) -> Row:
    """Compare what was heard with what was said."""
    reference, hypothesis = normalise(text.text), normalise(heard.text)
    errors = compare(reference, hypothesis)
    return Row(judge, *key, text, spoken, empty, heard.text, reference, hypothesis, errors, heard.error)


@dataclass(frozen=True, slots=True)
class Sum:
    """What a judge heard of a speaker."""

    judge: str
    speaker: str
    kind: str
    texts: Summary
    coverage: Estimate
    """The share of words that were heard; words heard that nobody said do not lower it."""
    not_ended: int
    """Texts whose speech the limit ended."""
    empty: int
    times_baseline: Estimate | None
    """Word errors of this speaker over those of the baseline; None where there is none to compare with."""


def sums(rows: Sequence[Row], seed: int, baseline: str | None = None) -> list[Sum]:
    """Sum up the rows of each judge, speaker and kind of text, in the order in which they come first.

    A text counts in the comparison with the speaker `baseline` if both have spoken it and were heard.
    """
    good: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        if row.error is None:
            good.setdefault((row.judge, row.speaker, row.text.kind), {})[row.number] = row
    found = []
    for (judge, speaker, kind), part in good.items():
        errors = [row.errors for row in part.values()]
        other = {} if baseline in (None, speaker) else good.get((judge, str(baseline), kind), {})
        found.append(
            Sum(
                judge,
                speaker,
                kind,
                summarise(errors, seed),
                coverage(errors, seed),
                sum(row.end == "limit" for row in part.values()),
                sum(row.empty for row in part.values()),
                _times(part, other, seed) if other else None,
            )
        )
    return found


def coverage(errors: Sequence[Errors], seed: int) -> Estimate:
    """Estimate the share of words that were heard, with its 95 % interval."""
    heard = np.array([one.words - one.substituted - one.deleted for one in errors], np.float64)
    return ratio_interval(heard, np.array([one.words for one in errors], np.float64), seed)


def _times(mine: dict[int, Row], other: dict[int, Row], seed: int) -> Estimate:
    """Estimate how many times as many errors there are in the same texts, drawing the texts again."""
    both = sorted(mine.keys() & other.keys())
    return ratio_interval(
        np.array([mine[number].errors.total for number in both], np.float64),
        np.array([other[number].errors.total for number in both], np.float64),
        seed,
    )
