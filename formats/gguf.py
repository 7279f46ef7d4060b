"""Read GGUF v2 and v3: one file, its raw byte shards, or a gguf-split set (formats.md sections 0 and 3).

The `gguf` package opens neither raw shards nor sets, so the header is parsed here, over the virtual file.
Nothing the file says is believed before it is checked against the size of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.family import foreign, require_ours
from voxtral_pipes.formats.table import TYPE_SIZES, Place, TensorFile, TensorInfo
from voxtral_pipes.formats.virtual import VirtualFile

MAGIC = b"GGUF"
ALIGNMENT = 32
TYPE_NAMES: Mapping[int, str] = {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0", 30: "BF16"}

MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 13
MAX_NAME_BYTES = 1 << 10
MAX_TEXT_BYTES = 1 << 12
"""Longer metadata strings (chat templates) are passed over like arrays."""
MAX_ITEMS = 1 << 22
"""Strings and nested arrays in all metadata arrays of one file; scalar arrays are skipped in one step."""
MAX_DEPTH = 4

_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class GgufFile(TensorFile):
    """The tensors of one GGUF model, whichever way it is cut.

    `paths` are one .gguf file, all raw shards in order (`raw=True`), or all parts of a gguf-split set in
    order.

    Raises:
        BadModelError: anything malformed, incomplete, or of a type that is not read here.
    """

    def __init__(self, paths: Sequence[Path], *, raw: bool = False) -> None:
        files = [VirtualFile(paths)] if raw else [VirtualFile([path]) for path in paths]
        if raw:
            files[0].check_cut()
        parts = [_Parser(file) for file in files]
        if raw:
            files[0].check_end(parts[0].end, parts[0].alignment)
        _check_set(parts)
        self.metadata: Mapping[str, Any] = parts[0].metadata
        """Scalars and strings of the (first) header; arrays are left out."""
        places: dict[str, Place] = {}
        for part in parts:
            twice = next((name for name in part.places if name in places), None)
            if twice is not None:
                raise BadModelError(
                    f"tensor {twice!r:.120} is in two parts of the set, {part.label} being one"
                )
            places.update(part.places)
        super().__init__(places)


def _check_set(parts: Sequence[_Parser]) -> None:
    """Check the `split.*` keys of formats.md section 3.2; count 0 or 1 is what a merge leaves behind."""
    for number, part in enumerate(parts):
        count = part.metadata.get("split.count", 0)
        if count in (0, 1) and len(parts) == 1:
            continue
        if count != len(parts):
            raise BadModelError(
                f"{part.label} is a part of a set of {count}, and {len(parts)} parts are there: "
                "keep all parts in one directory, under the names they were given"
            )
        if part.metadata.get("split.no") != number:
            raise BadModelError(
                f"{part.label} says it is part {part.metadata.get('split.no')!r:.20} (from 0), its name "
                f"says {number}"
            )
    total = parts[0].metadata.get("split.tensors.count")
    held = sum(len(part.places) for part in parts)
    if len(parts) > 1 and total is not None and total != held:
        raise BadModelError(f"the set of {parts[0].label} declares {total} tensors and holds {held}")


class _Parser:
    """Parses one header; `places`, `metadata`, `alignment` and `end` are the result."""

    def __init__(self, file: VirtualFile) -> None:
        self._file = file
        self._at = 0
        self._items = 0
        self.label = file.label
        self.metadata: dict[str, Any] = {}
        n_tensors = self._counts()
        self.alignment = self._alignment()
        table = [self._entry() for _ in range(n_tensors)]
        data_start = -(-self._at // self.alignment) * self.alignment
        self.places = self._resolve(table, data_start)
        self.end = max((p.offset + p.info.nbytes for p in self.places.values()), default=self._at)
        self._check_overlap()

    def _fail(self, what: str) -> BadModelError:
        return BadModelError(f"{self.label}: {what}")

    def _take(self, size: int) -> memoryview:
        piece = self._file.view(self._at, size)
        self._at += size
        return piece

    def _number(self, form: struct.Struct) -> Any:
        return form.unpack(self._take(form.size))[0]

    def _u32(self) -> int:
        return int(self._number(_SCALARS[4]))

    def _u64(self) -> int:
        return int(self._number(_SCALARS[10]))

    def _text(self, limit: int, what: str) -> str:
        length = self._u64()
        if length > limit:
            raise self._fail(f"{what} at byte {self._at} declares {length} bytes; {limit} are allowed")
        try:
            return bytes(self._take(length)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fail(f"{what} before byte {self._at} is not UTF-8") from error

    def _counts(self) -> int:
        """Read the fixed part and all metadata; return the number of tensors."""
        magic = bytes(self._file.view(0, min(4, self._file.size)))
        if magic != MAGIC:
            raise self._fail(f"not a GGUF file: it begins with {magic!r}")
        self._at = 4
        version = self._u32()
        if version not in (2, 3):
            raise self._fail(
                f"GGUF version {version} cannot be read; 2 and 3 can (byte order must be little-endian)"
            )
        n_tensors, n_keys = self._u64(), self._u64()
        # 24 and 13 bytes are the least that an entry takes.
        for count, limit, least, what in (
            (n_tensors, MAX_TENSORS, 24, "tensors"), (n_keys, MAX_KEYS, 13, "metadata keys"),
        ):  # fmt: skip
            if count > min(limit, self._file.size // least):
                raise self._fail(
                    f"the header declares {count} {what}, more than a file of this size can hold"
                )
        for _ in range(n_keys):
            key = self._text(MAX_NAME_BYTES, "a metadata key")
            if key in self.metadata:
                raise self._fail(f"metadata key {key!r:.80} is there twice")
            self.metadata[key] = self._value(self._u32(), 0)
        return n_tensors

    def _value(self, kind: int, depth: int) -> Any:
        """Read one metadata value; arrays and long strings are passed over and give None."""
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._short_text()
        if kind != _ARRAY:
            raise self._fail(f"unknown metadata type {kind} before byte {self._at}")
        if depth == MAX_DEPTH:
            raise self._fail(f"metadata arrays are nested deeper than {MAX_DEPTH}")
        item, count = self._u32(), self._u64()
        if item in _SCALARS:
            size = count * _SCALARS[item].size
            self._file.view(self._at, size)
            self._at += size
            return None
        self._items += count
        if self._items > MAX_ITEMS:
            raise self._fail(f"metadata arrays hold more than {MAX_ITEMS} items")
        for _ in range(count):
            if item == _STRING:
                self._short_text()
            else:
                self._value(item, depth + 1)
        return None

    def _short_text(self) -> str | None:
        length = self._u64()
        piece = self._file.view(self._at, length)
        self._at += length
        return bytes(piece).decode("utf-8", "replace") if length <= MAX_TEXT_BYTES else None

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._fail(f"general.alignment is {alignment!r:.40}, not a power of two")
        return alignment

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read (name, torch shape, ggml type, offset) of one tensor."""
        name = self._text(MAX_NAME_BYTES, "a tensor name")
        n_dims = self._u32()
        if not 1 <= n_dims <= 4:
            raise self._fail(f"tensor {name!r:.120} has {n_dims} dimensions; 1 to 4 are allowed")
        shape = tuple(reversed([self._u64() for _ in range(n_dims)]))
        return name, shape, self._u32(), self._u64()

    def _resolve(
        self, table: list[tuple[str, tuple[int, ...], int, int]], data_start: int
    ) -> dict[str, Place]:
        names = [name for name, *_ in table]
        if any(kind not in TYPE_NAMES for _, _, kind, _ in table) and foreign(names):
            require_ours(names, self.label)  # the family says more than the type
        places: dict[str, Place] = {}
        for name, shape, kind, offset in table:
            where = f"tensor {name!r:.120}"
            if name in places:
                raise self._fail(f"{where} is there twice")
            if kind not in TYPE_NAMES:
                raise self._fail(
                    f"{where} has the ggml type {kind}; {', '.join(TYPE_NAMES.values())} can be read"
                )
            if (
                min(shape) < 1 or prod(shape) > 4 * self._file.size
            ):  # the densest block holds 32 weights in 18 bytes
                raise self._fail(
                    f"{where} has the shape {shape}, which does not fit a file of {self._file.size} bytes"
                )
            info = TensorInfo(shape, TYPE_NAMES[kind])
            if shape[-1] % TYPE_SIZES[info.type][0]:
                raise self._fail(f"{where} is {info.type} with rows of {shape[-1]}, not a multiple of 32")
            if offset % self.alignment:
                raise self._fail(f"{where} begins at {offset}, not a multiple of {self.alignment}")
            if data_start + offset + info.nbytes > self._file.size:
                raise self._fail(
                    f"{where} ends at byte {data_start + offset + info.nbytes}, the file at "
                    f"{self._file.size}: it is "
                    "truncated, or a shard is missing"
                )
            places[name] = Place(self._file, data_start + offset, info)
        return places

    def _check_overlap(self) -> None:
        end, before = 0, ""
        for name, place in sorted(self.places.items(), key=lambda item: item[1].offset):
            if place.offset < end:
                raise self._fail(f"tensors {before!r:.120} and {name!r:.120} overlap")
            end, before = place.offset + place.info.nbytes, name
