"""The header of a GGUF v2 or v3: values, and where every byte of it lies (formats.md sections 0 and 3.2).

`formats.gguf` builds on it what computing needs, `formats.shard` what cuts and joins.  The `gguf` package opens neither
raw shards nor sets, so the header is parsed here, over files one behind the other; the types of other projects' files
are known by their sizes.  Nothing the file says is believed before it is checked against the size of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.pieces import Pieces

MAGIC = b"GGUF"
ALIGNMENT = 32

MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 13
MAX_NAME_BYTES = 1 << 10
MAX_TEXT_BYTES = 1 << 12
"""Longer metadata strings (chat templates) are passed over like arrays."""
MAX_ITEMS = 1 << 22
"""Strings and nested arrays in all metadata arrays of one file; scalar arrays are skipped in one step."""
MAX_DEPTH = 4

TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Name, elements and bytes of a block by ggml type (GGML_QUANT_SIZES of the `gguf` package)."""

_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_AHEAD_BYTES, _PAGE_BYTES = 1 << 16, 1 << 12


def padded(size: int, alignment: int) -> int:
    """Round up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the table."""

    name: str
    shape: tuple[int, ...]
    """Row-major (torch) order."""
    kind: int
    """The ggml type."""
    nbytes: int
    begin: int
    """Of its first byte, from the beginning of the file."""

    @property
    def type(self) -> str:
        """The name of the type."""
        return TYPES[self.kind][0]

    @property
    def head(self) -> bytes:
        """The entry as stored, without the offset at its end."""
        return entry_head(self.name, self.shape, self.kind)


class GgufTable:
    """The header of the GGUF that `source` begins with; the data are not looked at.

    Raises:
        BadModelError: anything malformed, or data outside of the file.
    """

    def __init__(self, source: Pieces) -> None:
        self.source = source
        self.label = source.label
        self._at = 0
        self._ahead = b""
        self._ahead_at = 0
        self._items = 0
        self.metadata: dict[str, Any] = {}
        """Scalars and short strings; None for all else."""
        self.spans: dict[str, tuple[int, int]] = {}
        """Where the pair of each key lies, first byte and end."""
        n_tensors = self._counts()
        self.alignment = self._alignment()
        rows = [self._row() for _ in range(n_tensors)]
        self._ahead = b""
        self.data_start = padded(self._at, self.alignment)
        """Where the data begin."""
        self.check_types([name for name, *_ in rows], [kind for _, _, kind, _ in rows])
        self.entries = tuple(self._placed(rows))
        self.end = max((entry.begin + entry.nbytes for entry in self.entries), default=self._at)
        """Where the last tensor ends."""

    def fail(self, what: str) -> BadModelError:
        """Make the error for something wrong in this file."""
        return BadModelError(f"{self.label}: {what}")

    def check_types(self, names: Sequence[str], kinds: Sequence[int]) -> None:
        """Check that the ggml types of all tensors are known.

        Raises:
            BadModelError: one is not.
        """
        for name, kind in zip(names, kinds, strict=True):
            if kind not in TYPES:
                raise self.fail(f"tensor {name!r:.120} has the unknown ggml type {kind}")

    def check_contiguous(self) -> None:
        """Check that each tensor begins where the one before it ends, padding aside, as ggml demands.

        Raises:
            BadModelError: there is a hole, or the data are in another order than the table.
        """
        at = self.data_start
        for entry in self.entries:
            if entry.begin != at:
                raise self.fail(f"tensor {entry.name!r:.120} begins at byte {entry.begin}; {at} is expected")
            at += padded(entry.nbytes, self.alignment)

    def check_size(self) -> None:
        """Check that nothing but padding follows the last tensor.

        Raises:
            BadModelError: something does: a piece that is there twice, or of another file.
        """
        if self.source.size >= self.end + self.alignment:
            raise self.fail(
                f"{self.source.size - self.end} bytes follow the last tensor: a shard twice, or foreign"
            )

    def _take(self, size: int) -> bytes:
        """Read the next `size` bytes, a few kilobytes at most; a window of the file is held."""
        begin = self._at - self._ahead_at
        if begin + size > len(self._ahead):
            # After a jump there may be another one.
            ahead = _PAGE_BYTES if begin > len(self._ahead) + _PAGE_BYTES else _AHEAD_BYTES
            length = max(size, min(ahead, self.source.size - self._at))
            self._ahead, self._ahead_at, begin = self.source.read(self._at, length), self._at, 0
        self._at += size
        return self._ahead[begin : begin + size]

    def _skip(self, size: int) -> None:
        if self._at + size > self.source.size:
            raise self.fail(f"it is truncated or corrupt: {size} bytes are declared at byte {self._at}")
        self._at += size

    def _u32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _name(self, what: str) -> str:
        length = self._u64()
        if length > MAX_NAME_BYTES:
            raise self.fail(
                f"{what} at byte {self._at} declares {length} bytes; {MAX_NAME_BYTES} are allowed"
            )
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} before byte {self._at} is not UTF-8") from error

    def _counts(self) -> int:
        """Read the fixed part and all metadata; return the number of tensors."""
        magic = self._take(min(4, self.source.size))
        if magic != MAGIC:
            raise self.fail(f"not a GGUF file: it begins with {magic!r}")
        self.version = self._u32()
        if self.version not in (2, 3):
            raise self.fail(f"GGUF version {self.version} cannot be read; 2 and 3, little-endian, can")
        n_tensors, n_keys = self._u64(), self._u64()
        # 24 and 13 bytes are the least that an entry takes.
        for count, limit, least, what in (
            (n_tensors, MAX_TENSORS, 24, "tensors"), (n_keys, MAX_KEYS, 13, "metadata keys"),
        ):  # fmt: skip
            if count > min(limit, self.source.size // least):
                raise self.fail(f"the header declares {count} {what}, more than a file of this size can hold")
        for _ in range(n_keys):
            begin = self._at
            key = self._name("a metadata key")
            if key in self.spans:
                raise self.fail(f"metadata key {key!r:.80} is there twice")
            self.metadata[key] = self._value(self._u32(), 0)
            self.spans[key] = begin, self._at
        return n_tensors

    def _value(self, kind: int, depth: int) -> Any:
        """Pass over one metadata value; return it if it is a scalar or a short string."""
        if kind in _SCALARS:
            return _SCALARS[kind].unpack(self._take(_SCALARS[kind].size))[0]
        if kind == _STRING:
            length = self._u64()
            if length <= MAX_TEXT_BYTES:
                return self._take(length).decode("utf-8", "replace")
            return self._skip(length)
        if kind != _ARRAY:
            raise self.fail(f"unknown metadata type {kind} before byte {self._at}")
        if depth == MAX_DEPTH:
            raise self.fail(f"metadata arrays are nested deeper than {MAX_DEPTH}")
        item, count = self._u32(), self._u64()
        if item in _SCALARS:
            return self._skip(count * _SCALARS[item].size)
        self._items += count
        if self._items > MAX_ITEMS:
            raise self.fail(f"metadata arrays hold more than {MAX_ITEMS} items")
        for _ in range(count):
            if item == _STRING:
                self._skip(self._u64())
            else:
                self._value(item, depth + 1)
        return None

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {alignment!r:.40}, not a power of two")
        return alignment

    def _row(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read (name, torch shape, ggml type, offset) of one tensor."""
        name = self._name("a tensor name")
        n_dims = self._u32()
        if not 1 <= n_dims <= 4:
            raise self.fail(f"tensor {name!r:.120} has {n_dims} dimensions; 1 to 4 are allowed")
        *ne, kind, offset = struct.unpack(f"<{n_dims}QIQ", self._take(8 * n_dims + 12))
        return name, tuple(reversed(ne)), kind, offset

    def _placed(self, rows: list[tuple[str, tuple[int, ...], int, int]]) -> Iterator[Entry]:
        """Check every entry against the type table and the file; the data may not overlap."""
        seen: set[str] = set()
        data: list[tuple[int, int, str]] = []
        for name, shape, kind, offset in rows:
            where = f"tensor {name!r:.120}"
            if name in seen:
                raise self.fail(f"{where} is there twice")
            seen.add(name)
            type_name, elements, size = TYPES[kind]
            # The densest block holds 256 weights in 50 bytes.
            if min(shape) < 1 or prod(shape) > 8 * self.source.size:
                raise self.fail(
                    f"{where} has the shape {shape}, which does not fit a file of {self.source.size} bytes"
                )
            if shape[-1] % elements:
                raise self.fail(
                    f"{where} is {type_name} with rows of {shape[-1]}, not a multiple of {elements}"
                )
            if offset % self.alignment:
                raise self.fail(f"{where} begins at {offset}, not a multiple of {self.alignment}")
            begin, nbytes = self.data_start + offset, prod(shape) // elements * size
            if begin + nbytes > self.source.size:
                raise self.fail(
                    f"{where} ends at byte {begin + nbytes}, the file at {self.source.size}: it is truncated, or a "
                    "shard is missing"
                )
            data.append((begin, begin + nbytes, name))
            yield Entry(name, shape, kind, nbytes, begin)
        data.sort()
        for (_, end, before), (begin, _, name) in pairwise(data):
            if begin < end:
                raise self.fail(f"tensors {before!r:.120} and {name!r:.120} overlap")


def entry_head(name: str, shape: tuple[int, ...], kind: int) -> bytes:
    """Return an entry of the table without the offset at its end; ne[0] is the fastest-varying dimension."""
    text = name.encode()
    form = f"<Q{len(text)}sI{len(shape)}QI"
    return struct.pack(form, len(text), text, len(shape), *reversed(shape), kind)
