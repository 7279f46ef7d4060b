"""What every weights file answers: which tensors it holds, and their bytes.

`GgufFile` and `SafetensorsFile` both have this face, so that `models/weights.py` needs one loading path.
No import of numpy or torch: a command that only looks for its model starts light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

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


class TensorFile(Protocol):
    """A file, or a set of files, that holds named tensors."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""

    def bytes(self, name: str, begin: int = 0, end: int | None = None) -> memoryview:
        """Return stored bytes `begin` to `end` of one tensor; a view of the mapped file where no cut runs through."""
