"""What is scored: recordings and what is said in them, from a table or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voxtral_pipes.errors import BadInputError

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au")
"""Endings that are taken for recordings in a folder."""


@dataclass(frozen=True, slots=True)
class Item:
    """One recording."""

    name: str
    """As the table names it, or relative to the folder."""
    audio: Path
    text: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of the table, by the names in its first line."""


def read_items(source: Path) -> list[Item]:
    """Read a table of recordings, or a folder in which `NAME.txt` beside `NAME.wav` says what is heard.

    A table is tab-separated UTF-8 without quotes; its first line names the columns, of which `path` (relative to
    the table) and `transcript` are needed.

    Raises:
        BadInputError: there is nothing, a recording or transcript is missing, or one is not UTF-8.
    """
    if not source.exists():
        raise BadInputError(f"{source} does not exist")
    items = list(_of_folder(source) if source.is_dir() else _of_table(source))
    missing = [item.name for item in items if not item.audio.is_file()]
    if missing:
        raise BadInputError(f"{source}: {len(missing)} recordings are missing, {missing[0]} being one")
    return items


def chosen(items: Sequence[Item], conditions: Sequence[str]) -> list[Item]:
    """Keep the items whose columns fulfil every `COLUMN=VALUE`; several values are separated by commas.

    Raises:
        BadInputError: a condition is malformed or names no column, or nothing is left.
    """
    kept = list(items)
    for condition in conditions:
        column, equals, values = condition.partition("=")
        if not equals:
            raise BadInputError(f"--where {condition}: COLUMN=VALUE is needed")
        if items and column not in items[0].columns:
            known = ", ".join(items[0].columns) or "none"
            raise BadInputError(f"--where {condition}: no column {column}; there are: {known}")
        kept = [item for item in kept if item.columns[column] in values.split(",")]
    if not kept:
        raise BadInputError("no recording is left to be scored")
    return kept


def _of_table(table: Path) -> Iterator[Item]:
    lines = _text(table).splitlines()
    names = lines[0].split("\t") if lines else []
    for needed in ("path", "transcript"):
        if needed not in names:
            raise BadInputError(f"{table}: the first line names no column {needed}")
    for number, line in enumerate(lines[1:], 2):
        values = line.split("\t")
        if len(values) != len(names):
            raise BadInputError(f"{table}, line {number}: {len(values)} columns instead of {len(names)}")
        row = dict(zip(names, values, strict=True))
        yield Item(row["path"], table.parent / row["path"], row["transcript"], row)


def _of_folder(folder: Path) -> Iterator[Item]:
    for audio in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO):
        name = str(audio.relative_to(folder))
        transcript = audio.with_suffix(".txt")
        if not transcript.is_file():
            raise BadInputError(f"{folder}: {name} has no transcript {transcript.name} beside it")
        yield Item(name, audio, " ".join(_text(transcript).split()))


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInputError(f"{path}, line {line}: not UTF-8") from error
