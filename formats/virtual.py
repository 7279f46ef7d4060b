"""One file, or the raw shards of one file, as a single run of mapped bytes (formats.md section 3.1).

The map is private and writable: torch accepts the views without complaint, and nothing is ever written back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from voxtral_pipes.errors import BadModelError

# The kernel would otherwise refuse to map, for writing, a file larger than the memory.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if os.uname().sysname == "Linux" else 0)


class VirtualFile:
    """The concatenation of `paths`, in that order, without copying them.

    Raises:
        BadModelError: a path cannot be opened or is not a regular file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._segments = [_map(path) for path in self.paths]
        self._starts = [0]
        for segment in self._segments:
            self._starts.append(self._starts[-1] + len(segment))

    @property
    def size(self) -> int:
        """Bytes of all segments together."""
        return self._starts[-1]

    @property
    def label(self) -> str:
        """What error messages call this file."""
        if len(self.paths) == 1:
            return self.paths[0].name
        return f"{self.paths[0].name}..{self.paths[-1].name}"

    def view(self, offset: int, size: int) -> memoryview:
        """Return `size` bytes from `offset`: a view inside one segment, a copy across a cut.

        Raises:
            BadModelError: the range is not inside the file.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise BadModelError(
                f"{self.label} is truncated or corrupt: it has {self.size} bytes, {size} at {offset} "
                f"are needed"
            )
        if size == 0:
            return memoryview(bytearray())
        index = bisect_right(self._starts, offset) - 1
        begin = offset - self._starts[index]
        if begin + size <= len(self._segments[index]):
            return self._segments[index][begin : begin + size]
        return self._stitch(index, begin, size)

    def _stitch(self, index: int, begin: int, size: int) -> memoryview:
        whole = bytearray(size)
        filled = 0
        while filled < size:
            piece = self._segments[index][begin : begin + size - filled]
            whole[filled : filled + len(piece)] = piece
            filled += len(piece)
            index, begin = index + 1, 0
        return memoryview(whole)

    def check_cut(self) -> None:
        """Check that the segments can be the pieces of one cut file, as far as sizes and magics show it.

        Raises:
            BadModelError: pieces of unequal size, or a second piece that begins a GGUF file of its own.
        """
        sizes = [len(segment) for segment in self._segments]
        for number, (path, size) in enumerate(zip(self.paths, sizes, strict=True)):
            last = number == len(sizes) - 1
            if size > sizes[0] or size == 0 or (size < sizes[0] and not last):
                raise BadModelError(
                    f"shard {path.name} has {size} bytes where {sizes[0]} are expected: it is "
                    f"incomplete or not "
                    f"part of the same file as {self.paths[0].name}"
                )
            if number and bytes(self._segments[number][:4]) == b"GGUF":
                raise BadModelError(
                    f"shard {path.name} begins a GGUF file of its own: a copied or foreign shard"
                )

    def check_end(self, end: int, slack: int) -> None:
        """Check that the data that end at `end` fill the pieces, padding below `slack` bytes aside.

        Raises:
            BadModelError: a piece is missing or there is one too many.
        """
        if end > self.size:
            raise BadModelError(
                f"{self.label}: {end} bytes are needed and {self.size} are there: a shard is missing or "
                f"cut short"
            )
        if self.size >= end + slack:
            raise BadModelError(
                f"{self.label}: {self.size - end} bytes follow the last tensor: a shard is there twice "
                f"or is foreign"
            )


def forget(view: memoryview) -> None:
    """Take the pages of a mapped file that `view` shows out of this process; where they are used again, they return.

    For those who read a file larger than memory once: it would otherwise seem to take up as much memory.
    """
    mapped = view.obj
    if view.nbytes and isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        start = _address(view) - _address(memoryview(mapped))
        begin = start // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, begin, start + view.nbytes - begin)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _map(path: Path) -> memoryview:
    try:
        if path.exists() and not path.is_file():  # before it is opened: a FIFO would block
            raise BadModelError(f"{path} is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:  # the system refuses to map nothing
                return memoryview(bytearray())
            mapped = mmap.mmap(
                file.fileno(),
                size,
                flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
            return memoryview(mapped)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadModelError(
            f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}"
        ) from error
