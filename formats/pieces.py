"""Files, one behind the other, read in pieces: what moves whole models holds a megabyte of them at a time.

`formats.virtual` maps the same bytes for computing; pages of a map that were touched count as memory of the
process, and here every page is touched once.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from voxtral_pipes.errors import BadModelError

PIECE_BYTES = 1 << 20


class Pieces:
    """The concatenation of `paths`, in that order.

    Raises:
        BadModelError: a path cannot be read or is not a regular file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.sizes = tuple(_size(path) for path in self.paths)
        self._starts = [0, *accumulate(self.sizes)]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return self._starts[-1]

    @property
    def label(self) -> str:
        """What error messages call these files."""
        names = [self.paths[0].name, self.paths[-1].name]
        return names[0] if len(self.paths) == 1 else "..".join(names)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; for headers, which are small.

        Raises:
            BadModelError: the range is not inside the files.
        """
        return b"".join(self.stream(offset, size, max(1, size)))

    def stream(self, offset: int = 0, size: int | None = None, step: int = PIECE_BYTES) -> Iterator[bytes]:
        """Yield `size` bytes from `offset`, or all, `step` at a time: only the last may be shorter.

        Raises:
            BadModelError: the range is not inside the files, or a file has changed since it was looked at.
        """
        size = self.size - offset if size is None else size
        if offset < 0 or size < 0 or offset + size > self.size:
            raise BadModelError(
                f"{self.label} is truncated or corrupt: it has {self.size} bytes, {size} at {offset} are needed"
            )
        held = bytearray()
        while size:
            index = bisect_right(self._starts, offset) - 1
            left = min(size, self._starts[index + 1] - offset)
            path, begin = self.paths[index], offset - self._starts[index]
            offset, size = offset + left, size - left
            try:
                with path.open("rb", buffering=0) as file:
                    file.seek(begin)
                    while left:
                        piece = file.read(min(left, step - len(held)))
                        if not piece:
                            raise BadModelError(f"{path.name} became shorter while it was read")
                        left -= len(piece)
                        held += piece
                        if len(held) == step or not (left or size):
                            yield bytes(held)
                            held.clear()
            except OSError as error:
                raise BadModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        told = getattr(error, "strerror", None) or error
        raise BadModelError(f"{path} cannot be opened: {told}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadModelError(f"{path} is not a regular file")
    return status.st_size
