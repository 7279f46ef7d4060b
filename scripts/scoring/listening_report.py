"""What was heard of whom, as text or as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scoring.listening import Row, Sum
from scoring.speech import Spoken
from voxtral_pipes.config import TTS_FRAME_TICKS, TTS_RATE_HZ

COLUMNS = (
    "judge", "voice", "kind", "text", "words", "sub", "del", "ins", "rate", "seconds", "end", "said", "heard",
)  # fmt: skip


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line of column names, and a line for each row that was spoken and heard."""
    yield "\t".join(COLUMNS)
    for row in rows:
        if row.error is None:
            errors = row.errors
            counts = (errors.words, errors.substituted, errors.deleted, errors.inserted)
            rate = "-" if errors.rate is None else f"{100 * errors.rate:.1f}"
            cells = (
                row.judge, row.speaker, row.text.kind, row.number, *counts, rate, f"{_seconds(row.spoken):.2f}",
                row.end, row.reference, row.hypothesis,
            )  # fmt: skip
            yield "\t".join(map(str, cells))


def sum_line(one: Sum, baseline: str) -> str:
    """Say one sum; `baseline` names whom it is compared with."""
    texts = one.texts
    told = (
        f"{one.judge}, {one.speaker}, {one.kind}: {texts.files} texts, {texts.words} words; words heard "
        f"{one.coverage}; word errors {texts.word_errors} ({texts.substituted} sub, {texts.deleted} del, "
        f"{texts.inserted} ins); texts wrong {texts.files_wrong}; not ended {one.not_ended}; empty {one.empty}"
    )
    times = one.times_baseline
    if times is None:
        return told
    if times.value is None:
        return f"{told}; {baseline} has no errors to compare with"
    return f"{told}; errors {times.value:.2f} times those of {baseline} [{times.low:.2f}, {times.high:.2f}]"


def as_json(head: Mapping[str, Any], rows: Sequence[Row], found: Sequence[Sum]) -> dict[str, Any]:
    """Gather everything; rates and shares are fractions, not percent."""
    return {
        **head,
        "sums": [asdict(one) for one in found],
        "texts": [
            {
                "judge": row.judge, "voice": row.speaker, "kind": row.text.kind, "number": row.number,
                "error": row.error, "seconds": _seconds(row.spoken), "end": row.end, "said": row.text.text,
                "heard": row.heard, "reference": row.reference, "hypothesis": row.hypothesis,
                **asdict(row.errors), "rate": row.errors.rate,
            }
            for row in rows
        ],
    }  # fmt: skip


def _seconds(one: Spoken) -> float:
    return one.frames * TTS_FRAME_TICKS / TTS_RATE_HZ
