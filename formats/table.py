"""What every weights file answers: which tensors it holds, and their bytes.

`GgufFile` and `SafetensorsFile` read their headers each in its way and are this behind it, so that
`models/weights.py` needs to know neither.  No import of numpy or torch: a command that only looks for its model starts
light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from voxtral_pipes.formats.virtual import VirtualFile

TYPE_SIZES: Mapping[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "I32": (1, 4), "I64": (1, 8), "U8": (1, 1),
    "Q4_0": (32, 18), "Q8_0": (32, 34),
}  # fmt: skip
"""Elements and bytes per block of each stored type (formats.md sections 0 and 4)."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a tensor table."""

    shape: tuple[int, ...]
    """Row-major (torch) order, in elements."""
    type: str
    """A key of `TYPE_SIZES`."""

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        elements, size = TYPE_SIZES[self.type]
        return prod(self.shape) // elements * size


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a tensor lie."""

    file: VirtualFile
    offset: int
    info: TensorInfo


class TensorFile:
    """A file, or a set of files, that holds named tensors."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = places
        self.tensors: Mapping[str, TensorInfo] = {name: place.info for name, place in places.items()}
        """Every tensor by name."""

    def bytes(self, name: str, begin: int = 0, end: int | None = None) -> memoryview:
        """Return stored bytes `begin` to `end` of one tensor; a view of the map unless a cut runs through them."""
        place = self._places[name]
        begin, end, _ = slice(begin, end).indices(place.info.nbytes)
        return place.file.view(place.offset + begin, end - begin)

    def read_into(self, name: str, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` with stored bytes of one tensor, from `begin` on; see `VirtualFile.read_into`.

        Raises:
            BadModelError: the system cannot read them.
        """
        place = self._places[name]
        if begin < 0 or begin + len(buffer) > place.info.nbytes:
            raise ValueError(f"{name} has {place.info.nbytes} bytes, not {len(buffer)} at {begin}")
        place.file.read_into(place.offset + begin, buffer)
