"""Write a GGUF from a dense checkpoint: in pieces of some rows, so that an interrupted run can go on.

The file grows under a name of its own and gets its final one when it is whole.  Its bytes depend on nothing but the
checkpoint and the layout, so its length says where to go on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadModelError, OutputError
from voxtral_pipes.formats.gguf_writer import aligned, encode, header
from voxtral_pipes.formats.locate import ModelFiles
from voxtral_pipes.models.dense_rows import DenseRows
from voxtral_pipes.models.gguf_layout import GgufLayout

PIECE_WEIGHTS = 1 << 20
"""About as many at once: small enough for caches, large enough for numpy."""
MAX_WORKERS = 4
_ENDING = ".partial"


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `begin` to `end` of one tensor, and where they end in the file, padding behind them included."""

    name: str
    begin: int
    end: int
    padding: int
    file_end: int


def pieces(
    rows: DenseRows, layout: GgufLayout, start: int = 0, weights: int = PIECE_WEIGHTS
) -> Iterator[Piece]:
    """Yield all rows of all tensors in the order of the file; the data begin at byte `start` of it."""
    last = list(layout.tensors)[-1]
    at = start
    for name, info in layout.tensors.items():
        n_rows, grain = info.shape[0], rows.grain(name)
        step = max(1, weights // prod(info.shape[1:]) // grain) * grain
        row_bytes = info.nbytes // n_rows
        for begin in range(0, n_rows, step):
            end = min(begin + step, n_rows)
            at += (end - begin) * row_bytes
            padding = aligned(at) - at if end == n_rows and name != last else 0
            at += padding
            yield Piece(name, begin, end, padding, at)


def quantize(
    files: ModelFiles,
    rows: DenseRows,
    layout: GgufLayout,
    out: Path,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
    piece_weights: int = PIECE_WEIGHTS,
) -> None:
    """Write `out`, which must not exist; go on where an earlier run with the same `files` and `layout` stopped.

    `progress` is called with bytes done and bytes in all: once before the first piece, and after each.

    Raises:
        BadModelError: the checkpoint holds values that cannot be stored.
        OutputError: the file cannot be written, another run is writing it, or there is not enough room.
    """
    head = header(layout.architecture, layout.tensors)
    plan = list(pieces(rows, layout, len(head), piece_weights))
    try:
        with _partial_file(out, _digest(files, head)) as (file, path):
            if out.exists():
                raise OutputError(f"{out} is there already: remove it, or name another file")
            done = _resume(file, head, plan)
            size = file.seek(0, os.SEEK_END)
            room, needed = shutil.disk_usage(path.parent).free, plan[-1].file_end - size
            if needed > room:
                raise OutputError(f"{out}: {needed} more bytes are needed, and the disk has {room} left")
            progress(size, plan[-1].file_end)
            for piece, data in _encoded(rows, layout, plan[done:]):
                file.write(data.data)
                file.write(bytes(piece.padding))
                progress(piece.file_end, plan[-1].file_end)
            file.flush()
            os.fsync(file.fileno())
            path.replace(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error


def _encoded(
    rows: DenseRows, layout: GgufLayout, plan: list[Piece]
) -> Iterator[tuple[Piece, npt.NDArray[np.uint8]]]:
    """Yield the pieces in order with their bytes; some threads work ahead, a few pieces each."""

    def work(piece: Piece) -> npt.NDArray[np.uint8]:
        try:
            return encode(rows.read(piece.name, piece.begin, piece.end), layout.tensors[piece.name].type)
        except ValueError as error:
            raise BadModelError(f"{piece.name}, rows {piece.begin} to {piece.end - 1}: {error}") from error

    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[Piece, Future[npt.NDArray[np.uint8]]]] = deque()
        try:
            for piece in plan:
                ahead.append((piece, pool.submit(work, piece)))
                if len(ahead) > 2 * workers:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for first, future in ahead:
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _resume(file: BinaryIO, head: bytes, plan: list[Piece]) -> int:
    """Cut `file` to the last whole piece, or begin it; return how many pieces are done."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begun = file.read(len(head)) == head
    done = sum(piece.file_end <= size for piece in plan) if begun else 0
    file.truncate((plan[done - 1].file_end if done else len(head)) if begun else 0)
    file.seek(0, os.SEEK_END)
    if not begun:
        file.write(head)
        file.flush()
    return done


@contextmanager
def _partial_file(out: Path, digest: str) -> Iterator[tuple[BinaryIO, Path]]:
    """Open the unfinished file for this process alone; those of other checkpoints or types are removed."""
    stem = f".{out.name[:180]}."
    path = out.with_name(f"{stem}{digest}{_ENDING}")
    unfinished = re.compile(rf"{re.escape(stem)}[0-9a-f]{{16}}{re.escape(_ENDING)}")
    for other in out.parent.iterdir():
        if other != path and unfinished.fullmatch(other.name):
            with suppress(OSError), other.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                other.unlink()
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{out} is being written by another run") from None
        try:
            yield file, path
        finally:
            if os.fstat(file.fileno()).st_size == 0:
                path.unlink(missing_ok=True)


def _digest(files: ModelFiles, head: bytes) -> str:
    """Name what a file is made from: 16 hex digits over its header, and path, size and time of all sources."""
    held = hashlib.sha256(head)
    paths = [*files.weights, *(path for path in (files.params, files.config) if path is not None)]
    if files.pieces == "index":
        paths += sorted(files.weights[0].parent.glob("*.safetensors"))
    for path in paths:
        stat = path.stat()
        held.update(
            f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
        )
    return held.hexdigest()[:16]
