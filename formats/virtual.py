"""One file, or the raw shards of one file, as a single run of bytes (formats.md section 3.1), mapped or read.

The map is private and writable: torch accepts the views without complaint, and nothing is ever written back.  What is
looked at through the map counts as memory of the process; what is only to be copied elsewhere is better read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from voxtral_pipes.errors import BadModelError

# The kernel would otherwise refuse to map, for writing, a file larger than the memory.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if os.uname().sysname == "Linux" else 0)
_MAPS: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
"""All files that are mapped."""


class VirtualFile:
    """The concatenation of `paths`, in that order, without copying them.

    Raises:
        BadModelError: a path cannot be opened or is not a regular file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._segments = [_Segment(path) for path in self.paths]
        self._starts = [0]
        for segment in self._segments:
            self._starts.append(self._starts[-1] + len(segment.view))

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
        self._check_inside(offset, size)
        if size == 0:
            return memoryview(bytearray())
        index, begin = self._find(offset)
        if begin + size <= len(self._segments[index].view):
            return self._segments[index].view[begin : begin + size]
        return self._stitch(index, begin, size)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, writable bytes, from `offset` on; several threads may, and the interpreter's lock is let go.

        Raises:
            BadModelError: the range is not inside the file, or the system cannot read it.
        """
        self._check_inside(offset, len(buffer))
        while len(buffer):
            index, begin = self._find(offset)
            count = self._segments[index].read_into(begin, buffer)
            offset, buffer = offset + count, buffer[count:]

    def _check_inside(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise BadModelError(
                f"{self.label} is truncated or corrupt: it has {self.size} bytes, {size} at {offset} "
                f"are needed"
            )

    def _find(self, offset: int) -> tuple[int, int]:
        """Return the segment in which `offset` lies, and where in it."""
        index = bisect_right(self._starts, offset) - 1
        return index, offset - self._starts[index]

    def _stitch(self, index: int, begin: int, size: int) -> memoryview:
        whole = bytearray(size)
        filled = 0
        while filled < size:
            piece = self._segments[index].view[begin : begin + size - filled]
            whole[filled : filled + len(piece)] = piece
            filled += len(piece)
            index, begin = index + 1, 0
        return memoryview(whole)

    def check_cut(self) -> None:
        """Check that the segments can be the pieces of one cut file, as far as sizes and magics show it.

        Raises:
            BadModelError: pieces of unequal size, or a second piece that begins a GGUF file of its own.
        """
        sizes = [len(segment.view) for segment in self._segments]
        for number, (path, size) in enumerate(zip(self.paths, sizes, strict=True)):
            last = number == len(sizes) - 1
            if size > sizes[0] or size == 0 or (size < sizes[0] and not last):
                raise BadModelError(
                    f"shard {path.name} has {size} bytes where {sizes[0]} are expected: it is "
                    f"incomplete or not "
                    f"part of the same file as {self.paths[0].name}"
                )
            if number and bytes(self._segments[number].view[:4]) == b"GGUF":
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


def forget_mapped(address: int, size: int) -> None:
    """Do as `forget` with the mapped bytes at `address`; nothing where they are no part of a mapped file."""
    for mapped in _MAPS:
        view = memoryview(mapped)
        begin = address - _address(view)
        if begin >= 0 and begin + size <= view.nbytes:
            forget(view[begin : begin + size])
            return


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class _Segment:
    """One file: mapped, and open for reading.

    Raises:
        BadModelError: it cannot be opened or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if path.exists() and not path.is_file():  # before it is opened: a FIFO would block
                raise BadModelError(f"{path} is not a regular file")
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            self.view = _map(self._descriptor)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise BadModelError(
                f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}"
            ) from error

    def read_into(self, begin: int, buffer: memoryview) -> int:
        """Fill the beginning of `buffer` with what follows `begin`, which is inside; return how many bytes that is."""
        wanted = buffer[: len(self.view) - begin]
        try:
            count = os.preadv(self._descriptor, [wanted], begin)
        except OSError as error:
            raise BadModelError(
                f"{self._path} cannot be read: {error.strerror or error}, {len(wanted)} bytes at {begin} are "
                f"needed"
            ) from error
        if count == 0:
            raise BadModelError(
                f"{self._path} was cut short while in use: it had {len(self.view)} bytes, {len(wanted)} at "
                f"{begin} are needed"
            )
        return count


def _map(descriptor: int) -> memoryview:
    size = os.fstat(descriptor).st_size
    if size == 0:  # the system refuses to map nothing
        return memoryview(bytearray())
    mapped = mmap.mmap(
        descriptor, size, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    _MAPS.add(mapped)
    return memoryview(mapped)
