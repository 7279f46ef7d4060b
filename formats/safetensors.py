"""Read safetensors: one file, its raw byte shards, or a set with an index (formats.md section 4).

The `safetensors` package opens whole files by path and imports numpy or torch to do so.  Raw shards have no
such path, and finding the one fitting model in the cache must stay light, so the header (a length and a
JSON map) is read here and the data are views of the virtual file.  The package is what the tests compare
with.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.settings import Settings, parse_json
from voxtral_pipes.formats.table import TYPE_SIZES, Place, TensorFile, TensorInfo
from voxtral_pipes.formats.virtual import VirtualFile

MAX_HEADER_BYTES = 100_000_000
TYPES = ("F32", "F16", "BF16", "I32", "I64", "U8")
MAX_RANK = 8


class SafetensorsFile(TensorFile):
    """The tensors of one safetensors model; `open` or `from_index` makes it."""

    @classmethod
    def open(cls, paths: Sequence[Path], *, raw: bool = False) -> SafetensorsFile:
        """Open one file, or all raw shards of one file in order (`raw=True`).

        Raises:
            BadModelError: anything malformed, truncated or incomplete.
        """
        file = VirtualFile(paths)
        if raw:
            file.check_cut()
        return cls(_parse(file))

    @classmethod
    def from_index(cls, index: Path) -> SafetensorsFile:
        """Open the files that `model.safetensors.index.json` names; only tensors of its map are taken.

        Raises:
            BadModelError: the index is malformed, or names a file or a tensor that is not there.
        """
        weight_map = Settings.read(index).section("weight_map")
        parts: dict[str, dict[str, Place]] = {}
        places: dict[str, Place] = {}
        for name in weight_map.keys:
            file_name = weight_map.text(name)
            if Path(file_name).name != file_name:
                raise BadModelError(
                    f"{index.name}: {name!r:.120} is in {file_name!r:.120}, which is not a file name"
                )
            if file_name not in parts:
                parts[file_name] = _parse(VirtualFile([index.parent / file_name]))
            if name not in parts[file_name]:
                raise BadModelError(f"{index.name}: tensor {name!r:.120} is not in {file_name}")
            places[name] = parts[file_name][name]
        return cls(places)


def check_layout(paths: Sequence[Path]) -> None:
    """Check that a safetensors file, or the raw shards of one, is whole, of whatever types its tensors are.

    Raises:
        BadModelError: anything malformed, truncated or incomplete.
    """
    file = VirtualFile(paths)
    if len(paths) > 1:
        file.check_cut()
    _parse(file, readable=False)


def _parse(file: VirtualFile, *, readable: bool = True) -> dict[str, Place]:
    """Read and check the header; `readable` refuses types that no model here has."""
    if file.size < 10:
        raise BadModelError(f"{file.label} is truncated: it has {file.size} bytes")
    length = int.from_bytes(file.view(0, 8), "little")
    if length > min(MAX_HEADER_BYTES, file.size - 8) or bytes(file.view(8, 1)) != b"{":
        raise BadModelError(f"{file.label} is not a safetensors file, or it is truncated inside its header")
    header = parse_json(bytes(file.view(8, length)), file.label)
    data_start = 8 + length
    places, spans = {}, []
    for name, entry in header.items():
        if name != "__metadata__":
            info, begin, end = _entry(name, entry, file, readable=readable)
            places[name] = Place(file, data_start + begin, info)
            spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise BadModelError(
                f"{file.label}: tensor {name!r:.120} overlaps another or leaves a hole before it"
            )
        at = end
    if data_start + at != file.size:
        raise BadModelError(
            f"{file.label} has {file.size} bytes and its tensors end at {data_start + at}: it is truncated, or not "
            f"complete"
        )
    return places


def _entry(name: str, entry: Any, file: VirtualFile, *, readable: bool) -> tuple[TensorInfo, int, int]:
    """Check one header entry; return it, and where its data begin and end."""
    where = f"{file.label}: tensor {name!r:.120}"
    if not isinstance(entry, dict):
        raise BadModelError(f"{where} is not described by a map")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or (readable and kind not in TYPES):
        raise BadModelError(f"{where} has the type {kind!r:.40}; {', '.join(TYPES)} can be read")
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise BadModelError(f"{where} has a malformed shape")
    if not _sizes(offsets) or len(offsets) != 2:
        raise BadModelError(f"{where} has malformed offsets")
    begin, end = offsets
    size = prod(shape) * TYPE_SIZES[kind][1] if kind in TYPES else end - begin
    if end > file.size or begin > end or size != end - begin:
        raise BadModelError(
            f"{where} of {kind} {shape!r:.80} cannot lie in bytes {begin}..{end}: the file is corrupt"
        )
    return TensorInfo(tuple(shape), kind), begin, end


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
