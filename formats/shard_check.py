"""Say what a model file or its pieces hold, and whether all of it is there and sound (formats.md section 3.4)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.family import foreign, recognise
from voxtral_pipes.formats.gguf_table import MAGIC, GgufTable
from voxtral_pipes.formats.pieces import PIECE_BYTES, Pieces
from voxtral_pipes.formats.safetensors import MAX_HEADER_BYTES, SafetensorsFile, check_layout
from voxtral_pipes.formats.settings import Settings, parse_json
from voxtral_pipes.formats.shard_join import Sums, tables_of
from voxtral_pipes.formats.shard_set import Manifest, ShardSet, find_shards

Form = Literal["file", "raw", "gguf-split", "index"]

# Bytes of a block, and how many of them are a float16 scale, or the value itself.
_FLOATS: Mapping[str, tuple[int, str]] = {
    "F32": (4, "<f4"), "F16": (2, "<f2"), "BF16": (2, "bf16"), "F64": (8, "<f8"), "Q4_0": (18, "<f2"),
    "Q8_0": (34, "<f2"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    source: Pieces
    begin: int


@dataclass(frozen=True, slots=True)
class Held:
    """What a path stands for."""

    form: Form
    format: str | None
    """gguf or safetensors; None for raw shards of something else."""
    paths: tuple[Path, ...]
    size: int
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, Any]
    shards: ShardSet | None
    tables: tuple[GgufTable, ...] = ()
    """Of a GGUF, one or that of each part."""

    @property
    def family(self) -> str:
        """voxtral-asr, voxtral-tts, or what else the names of the tensors say."""
        names = [tensor.name for tensor in self.tensors]
        return recognise(names) or foreign(names) or "unknown"

    @property
    def types(self) -> dict[str, tuple[int, int]]:
        """Number of tensors and of bytes by stored type, most bytes first."""
        counts = Counter(tensor.type for tensor in self.tensors)
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.type] += tensor.nbytes
        return {kind: (counts[kind], size) for kind, size in sizes.most_common()}

    @property
    def manifest(self) -> Manifest | None:
        """The manifest beside the pieces."""
        return self.shards.manifest if self.shards else None


def look(path: Path) -> Held:
    """Read the headers of a file or of its pieces, and check all that headers, names and sizes tell.

    Raises:
        BadModelError: something is missing, malformed, or not where it should be.
    """
    shards = find_shards(path)
    if shards is None:
        return _look_at_model(path)
    if shards.style == "gguf-split":
        tables = tables_of(shards.paths)
        return _held_gguf("gguf-split", shards.paths, tables, shards)
    return _look_at_file("raw", shards.paths, shards)


def check_complete(shards: ShardSet) -> bool:
    """Check that raw pieces without a manifest make up one whole file; False where that cannot be told.

    Raises:
        BadModelError: they do not: a piece is missing, doubled or foreign, or the file was cut short before.
    """
    if shards.style != "raw" or shards.manifest:
        return True
    source = Pieces(shards.paths)
    kind = _kind(source)
    if kind == "gguf":
        _check_heads(shards.paths)
        GgufTable(source).check_size()
    elif kind == "safetensors":
        end = _safetensors_end(source)
        if end != source.size:
            raise BadModelError(
                f"{source.label}: {source.size} bytes are there, and the tensors end at {end}: a shard is missing, or "
                "foreign"
            )
    return kind is not None


def _kind(source: Pieces) -> str | None:
    head = source.read(0, min(9, source.size))
    if head[:4] == MAGIC:
        return "gguf"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return "safetensors"
    return None


def _safetensors_end(source: Pieces) -> int:
    """Return where the tensors of a safetensors file end, of whatever types they are."""
    length = int.from_bytes(source.read(0, 8), "little")
    ends = [0]
    for name, entry in parse_json(source.read(8, length), source.label).items():
        if name != "__metadata__":
            offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
            if not isinstance(offsets, list) or len(offsets) != 2 or type(offsets[1]) is not int:
                raise BadModelError(f"{source.label}: tensor {name!r:.120} has malformed offsets")
            ends.append(offsets[1])
    return 8 + length + max(ends)


def _look_at_file(form: Form, paths: tuple[Path, ...], shards: ShardSet | None) -> Held:
    source = Pieces(paths)
    kind = _kind(source)
    if kind == "gguf":
        if shards and not shards.manifest:
            _check_heads(paths)
        table = GgufTable(source)
        table.check_size()
        return _held_gguf(form, paths, [table], shards)
    if kind == "safetensors":
        check_layout(paths)
        tensors, metadata = _safetensors(source)
        return Held(form, "safetensors", paths, source.size, tuple(tensors), metadata, shards)
    if form == "raw":
        return Held(form, None, paths, source.size, (), {}, shards)
    head = source.read(0, min(4, source.size))
    raise BadModelError(f"{source.label} is neither a GGUF nor a safetensors file: it begins with {head!r}")


def _check_heads(paths: Sequence[Path]) -> None:
    for path in paths[1:]:
        one = Pieces([path])
        if one.read(0, min(4, one.size)) == MAGIC:
            raise BadModelError(f"{path} begins a GGUF file of its own: a copied or foreign shard")


def _held_gguf(
    form: Form, paths: tuple[Path, ...], tables: Sequence[GgufTable], shards: ShardSet | None
) -> Held:
    tensors = [
        Tensor(entry.name, entry.shape, entry.type, entry.nbytes, table.source, entry.begin)
        for table in tables
        for entry in table.entries
    ]
    size = sum(table.source.size for table in tables)
    return Held(form, "gguf", paths, size, tuple(tensors), tables[0].metadata, shards, tuple(tables))


def _safetensors(source: Pieces) -> tuple[list[Tensor], Mapping[str, Any]]:
    """Read the header of a file that `check_layout` has taken."""
    length = int.from_bytes(source.read(0, 8), "little")
    header: dict[str, Any] = json.loads(source.read(8, length))
    metadata = header.pop("__metadata__", None)
    tensors = [
        Tensor(name, tuple(entry["shape"]), entry["dtype"], end - begin, source, 8 + length + begin)
        for name, entry in header.items()
        for begin, end in [entry["data_offsets"]]
    ]
    tensors.sort(key=lambda tensor: tensor.begin)
    return tensors, metadata if isinstance(metadata, dict) else {}


def _look_at_model(path: Path) -> Held:
    """Look at one file, an index, or the model of a directory that holds no pieces."""
    from voxtral_pipes.formats.locate import files_at

    if path.is_file() and not path.name.endswith((".safetensors.index.json", "manifest.json")):
        return _look_at_file("file", (path,), None)
    if not path.exists():
        raise BadModelError(f"there is nothing at {path}")
    files = files_at(path)
    if files.pieces != "index":
        return _look_at_file("file", files.weights, None)
    index = files.weights[0]
    tensors = SafetensorsFile.from_index(index).tensors
    weight_map = Settings.read(index).section("weight_map")
    paths = tuple(index.parent / name for name in sorted({weight_map.text(name) for name in weight_map.keys}))
    held = [tensor for one in paths for tensor in _safetensors(Pieces([one]))[0] if tensor.name in tensors]
    return Held("index", "safetensors", paths, Pieces(paths).size, tuple(held), {}, None)


def sums(held: Held, progress: Callable[[int], object]) -> Iterator[tuple[Path, str]]:
    """Read every byte; yield the SHA-256 of each file in order.

    Raises:
        BadModelError: a sum is not that of the manifest.
    """
    shards = held.shards or ShardSet("raw", held.paths, None)
    check = Sums(shards)
    for path in held.paths:
        for piece in Pieces([path]).stream():
            check.add(piece)
            progress(len(piece))
        yield path, check.end_part(path)
    check.end()


def check_finite(held: Held, progress: Callable[[int], object]) -> int:
    """Check that floats and the scales of Q4_0 and Q8_0 blocks are finite; return the number of tensors looked at.

    Raises:
        BadModelError: one is not; the message names it.
    """
    looked = 0
    for tensor in held.tensors:
        if tensor.type in _FLOATS:
            _check_tensor(tensor, progress)
            looked += 1
    return looked


def _check_tensor(tensor: Tensor, progress: Callable[[int], object]) -> None:
    import numpy as np

    block, form = _FLOATS[tensor.type]
    done = 0
    for piece in tensor.source.stream(tensor.begin, tensor.nbytes, PIECE_BYTES // block * block):
        if form == "bf16":
            wrong = (np.frombuffer(piece, "<u2") & 0x7F80) == 0x7F80
        else:
            value = np.dtype(form)
            rows = np.frombuffer(piece, np.uint8).reshape(-1, block)[:, : value.itemsize]
            wrong = ~np.isfinite(np.ascontiguousarray(rows).view(value)[:, 0])
        if wrong.any():
            what = "the scale of block" if tensor.type.startswith("Q") else "value"
            raise BadModelError(
                f"{tensor.source.label}: tensor {tensor.name!r:.120}: {what} {done + int(wrong.argmax())} is not finite"
            )
        done += len(wrong)
        progress(len(piece))
