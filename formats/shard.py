"""Cut a file into shards (formats.md sections 3.1, 3.2 and 3.4); `formats.shard_join` is the way back.

Two styles: raw pieces of any file, as split(1) makes them; and gguf-split parts, each a GGUF of its own.  Bytes go
through in pieces of a megabyte.  What is written is handed to `NewFiles`, which gives the names at the end.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from voxtral_pipes.errors import BadInputError, OutputError
from voxtral_pipes.formats.gguf_table import ALIGNMENT, MAGIC, Entry, GgufTable, padded
from voxtral_pipes.formats.names import MANIFEST, RAW_NAME, part_name, part_of, raw_name
from voxtral_pipes.formats.new_files import NewFiles, refuse_existing
from voxtral_pipes.formats.shard_set import MAX_PARTS, Manifest, Part

Progress = Callable[[int], object]
"""Is told how many more bytes have gone through."""

_FIXED_BYTES = 24
_TYPE_U16, _TYPE_I32 = 2, 5


class Writer:
    """Writes one new file, and its sum where one is wanted."""

    def __init__(self, files: NewFiles, path: Path, *, hashed: bool) -> None:
        self._path = path
        self._file: BinaryIO = files.open(path)
        self._sum = hashlib.sha256() if hashed else None
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`.

        Raises:
            OutputError: the disk is full, or the file cannot grow.
        """
        if self._sum:
            self._sum.update(data)
        self.size += len(data)
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error

    def finish(self) -> Part:
        """Close the file once it is on the disk."""
        try:
            NewFiles.finish(self._file)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error
        return Part(self._path.name, self.size, self._sum.hexdigest() if self._sum else "")


def _publish(files: NewFiles, home: Path, manifest: Manifest | None) -> None:
    if manifest:
        writer = Writer(files, home / MANIFEST, hashed=False)
        writer.write(manifest.encode())
        writer.finish()
    files.publish()


def split_raw(
    files: NewFiles,
    source: Iterable[bytes],
    name: str,
    size: int,
    out_dir: Path,
    *,
    manifest: bool,
    progress: Progress,
) -> list[Part]:
    """Cut `source` into pieces of `size` bytes in `out_dir`: shard-aa, shard-ab, ...; `name` is for the manifest.

    Raises:
        BadInputError: there are no bytes, or more than `MAX_PARTS` pieces would be made.
        OutputError: `out_dir` holds shards already, or cannot be written.
    """
    files.folder(out_dir)
    for path in sorted(out_dir.iterdir()):
        if RAW_NAME.fullmatch(path.name):
            refuse_existing(path)
    refuse_existing(out_dir / MANIFEST)  # also one of other pieces: these would not fit to it
    whole = hashlib.sha256()
    parts: list[Part] = []
    writer: Writer | None = None
    for piece in source:
        view = memoryview(piece)
        if manifest:
            whole.update(view)
        while view:
            if writer is None:
                if len(parts) == MAX_PARTS:
                    raise BadInputError(
                        f"more than {MAX_PARTS} shards of {size} bytes: choose a larger --size"
                    )
                writer = Writer(files, out_dir / raw_name(len(parts)), hashed=manifest)
            fitting = view[: size - writer.size]
            writer.write(fitting)
            view = view[len(fitting) :]
            if writer.size == size:
                parts.append(writer.finish())
                writer = None
        progress(len(piece))
    if writer:
        parts.append(writer.finish())
    if not parts:
        raise BadInputError(f"{name} is empty: there is nothing to split")
    total = sum(part.size for part in parts)
    _publish(
        files, out_dir, Manifest("raw", name, total, whole.hexdigest(), tuple(parts)) if manifest else None
    )
    return parts


def plan(table: GgufTable, limit: int, *, allow_oversize: bool) -> list[tuple[Entry, ...]]:
    """Choose the tensors of each part, in order, so that no part is larger than `limit`, header and padding included.

    With `allow_oversize` a tensor that does not fit is a part by itself.  A first part without tensors holds
    metadata that leave no room for the first one.

    Raises:
        BadInputError: a tensor or the metadata do not fit, or there would be more than `MAX_PARTS` parts.
    """
    if table.metadata.get("split.count", 0) not in (0, 1):
        raise BadInputError(f"{table.label} is a part of a gguf-split set itself: join the set first")
    parts: list[list[Entry]] = [[]]
    size = _Size(table, first=True)
    for entry in table.entries:
        if size.with_one_more(entry) > limit and (parts[-1] or len(parts) == 1):
            parts.append([])
            size = _Size(table, first=False)
        size.add(entry)
        parts[-1].append(entry)
    for number, part in enumerate(parts):
        needed = part_bytes(table, part, first=number == 0)
        if needed > limit and not allow_oversize:
            what = f"tensor {part[0].name!r:.120}" if part else "the metadata"
            raise BadInputError(
                f"{what} would take a part of {needed} bytes, more than --size allows ({limit}); give a larger --size, "
                "--allow-oversize, or --style raw"
            )
    if len(parts) > MAX_PARTS:
        raise BadInputError(f"{len(parts)} parts of {limit} bytes: choose a larger --size")
    return [tuple(part) for part in parts]


class _Size:
    """The size of a part, tensor by tensor."""

    def __init__(self, table: GgufTable, *, first: bool) -> None:
        self._alignment = table.alignment if first else ALIGNMENT
        self._header = _FIXED_BYTES + len(_split_keys(0, 1, 0))
        self._header += sum(end - begin for begin, end in kept_spans(table)) if first else 0
        self._data = 0

    def add(self, entry: Entry) -> None:
        self._header += len(entry.head) + 8
        self._data += padded(entry.nbytes, self._alignment)

    @property
    def total(self) -> int:
        return padded(self._header, self._alignment) + self._data

    def with_one_more(self, entry: Entry) -> int:
        header = padded(self._header + len(entry.head) + 8, self._alignment)
        return header + self._data + padded(entry.nbytes, self._alignment)


def part_bytes(table: GgufTable, entries: Sequence[Entry], *, first: bool) -> int:
    """Return the size of the part with these tensors."""
    size = _Size(table, first=first)
    for entry in entries:
        size.add(entry)
    return size.total


def split_gguf(
    files: NewFiles, table: GgufTable, prefix: Path, parts: Sequence[Sequence[Entry]], *, manifest: bool,
    progress: Progress,
) -> list[Part]:  # fmt: skip
    """Write the parts PREFIX-00001-of-0000N.gguf, as `plan` has chosen their tensors.

    Raises:
        OutputError: parts of that prefix are there already, or cannot be written.
        BadModelError: the file cannot be read to its end.
    """
    home, stem = prefix.parent, prefix.name
    files.folder(home)
    for path in sorted(home.iterdir()):
        if (part := part_of(path.name)) and part["stem"] == stem:
            refuse_existing(path)
    refuse_existing(home / MANIFEST)
    source = table.source
    whole = hashlib.sha256()
    if manifest:
        for piece in source.stream():
            whole.update(piece)
    written = []
    for number, entries in enumerate(parts):
        writer = Writer(files, home / part_name(stem, number, len(parts)), hashed=manifest)
        for piece in _part(table, entries, number, len(parts)):
            writer.write(piece)
            progress(len(piece))
        written.append(writer.finish())
    told = (
        Manifest("gguf-split", source.label, source.size, whole.hexdigest(), tuple(written))
        if manifest
        else None
    )
    _publish(files, home, told)
    return written


def kept_spans(table: GgufTable) -> list[tuple[int, int]]:
    """Return where the metadata pairs lie that are the file's own, none of a set."""
    return [span for key, span in table.spans.items() if not key.startswith("split.")]


def _split_keys(number: int, count: int, n_tensors: int) -> bytes:
    keys = ((b"split.no", _TYPE_U16, "H", number), (b"split.count", _TYPE_U16, "H", count),
            (b"split.tensors.count", _TYPE_I32, "i", n_tensors))  # fmt: skip
    return b"".join(
        struct.pack(f"<Q{len(key)}sI{form}", len(key), key, kind, value) for key, kind, form, value in keys
    )


def _part(table: GgufTable, entries: Sequence[Entry], number: int, count: int) -> Iterator[bytes]:
    """Make one part, padded behind every tensor as ggml expects it."""
    kept = kept_spans(table) if number == 0 else []
    alignment = table.alignment if number == 0 else ALIGNMENT
    added = _split_keys(number, count, len(table.entries))
    size = 0
    for piece in header(table, kept, 3, added, entries, alignment):
        size += len(piece)
        yield piece
    yield bytes(-size % alignment)
    for entry in entries:
        yield from table.source.stream(entry.begin, entry.nbytes)
        yield bytes(-entry.nbytes % alignment)


def header(
    table: GgufTable, kept: Sequence[tuple[int, int]], n_added: int, added: bytes, entries: Sequence[Entry],
    alignment: int,
) -> Iterator[bytes]:  # fmt: skip
    """Make the header of a file with these tensors, in pieces, padded where data follow.

    `kept` are pairs of `table` to be copied as they are, `added` is `n_added` pairs behind them.
    """
    yield MAGIC + struct.pack("<IQQ", table.version, len(entries), len(kept) + n_added)
    size = _FIXED_BYTES
    for begin, end in kept:
        yield from table.source.stream(begin, end - begin)
        size += end - begin
    rows, offset = [added], 0
    for entry in entries:
        rows.append(entry.head + struct.pack("<Q", offset))
        offset += padded(entry.nbytes, alignment)
    rows.append(bytes(-(size + sum(map(len, rows))) % alignment if entries else 0))
    yield from rows
