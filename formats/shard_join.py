"""Join shards to the file they were cut from (formats.md sections 3.1, 3.2 and 3.4); `formats.shard` cuts.

What names, sizes and headers tell is checked before the first byte goes out, the sums of a manifest while they do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.gguf import check_set
from voxtral_pipes.formats.gguf_table import GgufTable, padded
from voxtral_pipes.formats.names import MANIFEST
from voxtral_pipes.formats.new_files import NewFiles
from voxtral_pipes.formats.pieces import Pieces
from voxtral_pipes.formats.shard import Writer, header, kept_spans
from voxtral_pipes.formats.shard_set import Manifest, ShardSet


def write_new(files: NewFiles, path: Path, pieces: Iterable[bytes]) -> None:
    """Write one file that is not there yet, and give it its name.

    Raises:
        OutputError: it exists, or cannot be written; nothing is left then.
    """
    writer = Writer(files, path, hashed=False)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    files.publish()


def join_bytes(shards: ShardSet) -> tuple[int, Iterator[bytes]]:
    """Return the size of the joined file, and its bytes; what can be checked beforehand has been.

    Sums are compared while the bytes are read: only the end of the iterator says that all was right.

    Raises:
        BadModelError: the pieces are not those of one whole file; also while iterating.
    """
    if shards.style == "raw":
        return Pieces(shards.paths).size, _join_raw(shards)
    tables = tables_of(shards.paths)
    first, entries = tables[0], [entry for table in tables for entry in table.entries]
    kept = kept_spans(first)

    def head() -> Iterator[bytes]:  # metadata may be large: once for their size, and once as they go out
        return header(first, kept, 0, b"", entries, first.alignment)

    size = sum(map(len, head())) + sum(padded(entry.nbytes, first.alignment) for entry in entries[:-1])
    size += entries[-1].nbytes if entries else 0
    return size, _join_gguf(shards, tables, head())


def _join_raw(shards: ShardSet) -> Iterator[bytes]:
    check = Sums(shards) if shards.manifest else None
    for path in shards.paths:
        for piece in Pieces([path]).stream():
            if check:
                check.add(piece)
            yield piece
        if check:
            check.end_part(path)
    if check:
        check.end()


def _join_gguf(shards: ShardSet, tables: Sequence[GgufTable], head: Iterator[bytes]) -> Iterator[bytes]:
    yield from head
    due = 0  # padding of the tensor before, so that the last one gets none
    for path, table in zip(shards.paths, tables, strict=True):
        if shards.manifest:  # before any of it goes out; the second reading finds it in memory
            check_sum(shards, path)
        for entry in table.entries:
            yield bytes(due)
            yield from table.source.stream(entry.begin, entry.nbytes)
            due = -entry.nbytes % tables[0].alignment


def check_sum(shards: ShardSet, path: Path) -> str:
    """Return the SHA-256 of one piece.

    Raises:
        BadModelError: it is not that of the manifest, where there is one.
    """
    check = Sums(shards)
    for piece in Pieces([path]).stream():
        check.add(piece)
    return check.end_part(path)


def _compare(manifest: Manifest | None, path: Path, found: str) -> None:
    """Check the sum of one piece against a manifest, where there is one.

    Raises:
        BadModelError: they differ.
    """
    if manifest is None:
        return
    wanted = next(part.sha256 for part in manifest.parts if part.name == path.name)
    if found == wanted:
        return
    other = next((part.name for part in manifest.parts if part.sha256 == found), None)
    said = (
        f"holds what {other} should hold: the shards are in another order"
        if other
        else "is damaged or foreign"
    )
    raise BadModelError(f"{path} {said} (SHA-256 {found[:16]}..., {MANIFEST} says {wanted[:16]}...)")


class Sums:
    """Sums of pieces, and of raw ones together, as they go by; what a manifest says is compared."""

    def __init__(self, shards: ShardSet) -> None:
        self._manifest = shards.manifest
        self._part = hashlib.sha256()
        # That of a gguf-split set is of the file it was made from: the join may lack padding at its end.
        self._whole = hashlib.sha256() if shards.manifest and shards.style == "raw" else None

    def add(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._part.update(piece)
        if self._whole:
            self._whole.update(piece)

    def end_part(self, path: Path) -> str:
        """Return the sum of the piece that ends here.

        Raises:
            BadModelError: it is not that of the manifest.
        """
        value, self._part = self._part.hexdigest(), hashlib.sha256()
        _compare(self._manifest, path, value)
        return value

    def end(self) -> None:
        """Compare the sum of all.

        Raises:
            BadModelError: it is not that of the manifest.
        """
        if self._whole and self._manifest and self._whole.hexdigest() != self._manifest.sha256:
            raise BadModelError(
                f"the joined bytes are not those that {MANIFEST} was written for: it is damaged"
            )


def tables_of(paths: Sequence[Path]) -> list[GgufTable]:
    """Read and check the headers of all parts of a gguf-split set (formats.md section 3.2).

    Raises:
        BadModelError: a part is malformed, or of another set or place in it.
    """
    tables = [GgufTable(Pieces([path])) for path in paths]
    check_set(tables)
    for table in tables:
        table.check_size()
    return tables
