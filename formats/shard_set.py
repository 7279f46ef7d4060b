"""The pieces of one file: their manifest, and whether all are there (formats.md sections 3.1 to 3.4).

`formats.locate` finds what a model is to be loaded from; here a directory stands for the pieces in it, whatever
they are pieces of, and what is missing, doubled or foreign is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.names import (
    MANIFEST,
    RAW_NAME,
    letters,
    names_in,
    part_of,
    part_paths,
    raw_name,
    raw_paths,
)
from voxtral_pipes.formats.pieces import Pieces
from voxtral_pipes.formats.settings import Settings

Style = Literal["raw", "gguf-split"]
STYLES: tuple[Style, ...] = ("raw", "gguf-split")
MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """One piece, as a manifest describes it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What vx-shard writes beside the pieces; `size` and `sha256` are those of the whole file."""

    style: Style
    name: str
    size: int
    sha256: str
    parts: tuple[Part, ...]

    def encode(self) -> bytes:
        """Make the JSON of formats.md section 3.4."""
        parts = [{"name": part.name, "size": part.size, "sha256": part.sha256} for part in self.parts]
        values: dict[str, Any] = {
            "format": "vx-shard", "version": 1, "style": self.style, "name": self.name, "size": self.size,
            "sha256": self.sha256, "parts": parts,
        }  # fmt: skip
        return json.dumps(values, indent=1).encode() + b"\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            BadModelError: it is none of vx-shard's, or malformed.
        """
        values = Settings.read(path)
        if not values.has("format"):
            raise values.fail("format", "is missing: this is no manifest of vx-shard")
        values.expect("format", "vx-shard")
        values.expect("version", 1)
        values.expect("style", *STYLES)
        style = STYLES[STYLES.index("raw" if values.text("style") == "raw" else "gguf-split")]
        listed = values.sections("parts")
        if not 1 <= len(listed) <= MAX_PARTS:
            raise values.fail("parts", f"has {len(listed)} entries; 1 to {MAX_PARTS} are allowed")
        parts = tuple(Part(_file_name(part), _size(part), _sum(part)) for part in listed)
        names = [part.name for part in parts]
        if len(set(names)) != len(names):
            raise values.fail("parts", "has a name twice")
        size = _size(values)
        if style == "raw" and sum(part.size for part in parts) != size:
            raise values.fail(
                "size", f"is {size}, and its parts have {sum(part.size for part in parts)} bytes"
            )
        return cls(style, values.text("name"), size, _sum(values), parts)


def _file_name(part: Settings) -> str:
    name = part.text("name")
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise part.fail("name", f"is {name!r:.120}, which is not a file name")
    return name


def _size(values: Settings) -> int:
    return values.integer("size", least=0, most=2**63 - 1)


def _sum(values: Settings) -> str:
    text = values.text("sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise values.fail("sha256", f"is {text!r:.80}, not 64 hexadecimal digits")
    return text


@dataclass(frozen=True, slots=True)
class ShardSet:
    """Pieces of one file, all there by their names and sizes, in order."""

    style: Style
    paths: tuple[Path, ...]
    manifest: Manifest | None


def find_shards(path: Path) -> ShardSet | None:
    """Return the pieces that `path` stands for: a manifest, any piece, or a directory; None if it is something else.

    Names are looked at, and sizes, not what the pieces hold.

    Raises:
        BadModelError: a piece is missing, too short or too long, or foreign; or there are several sets.
    """
    try:
        if path.is_dir():
            return _in_directory(path)
        home = path.parent
        names = names_in(home) if home.is_dir() else []
        if path.name == MANIFEST:
            return _of_manifest(home, Manifest.read(path), names)
        if RAW_NAME.fullmatch(path.name) and path.exists():
            return _listed(home, "raw", None, names) or _raw(home, names)
        if (part := part_of(path.name)) and path.exists():
            return _listed(home, "gguf-split", part["stem"], names) or _parts(home, names, part["stem"])
    except OSError as error:
        raise BadModelError(f"{path} cannot be read: {error.strerror or error}") from error
    return None


def _in_directory(home: Path) -> ShardSet | None:
    names = names_in(home)
    if found := _listed(home, None, None, names):
        return found
    stems = sorted({part["stem"] for name in names if (part := part_of(name))})
    raw = any(RAW_NAME.fullmatch(name) for name in names)
    if len(stems) + raw > 1:
        sets = ", ".join([*stems, *(["shard-*"] if raw else [])])
        raise BadModelError(
            f"{home} holds the pieces of several files ({sets:.200}): name one piece of one of them"
        )
    if raw:
        return _raw(home, names)
    return _parts(home, names, stems[0]) if stems else None


def _listed(home: Path, style: Style | None, stem: str | None, names: Sequence[str]) -> ShardSet | None:
    """Return the set of the manifest in `home`, if there is one and it lists pieces of this kind."""
    if MANIFEST not in names:
        return None
    values = Settings.read(home / MANIFEST)
    try:
        values.text("format")
        values.expect("format", "vx-shard")
    except BadModelError:
        return None  # a manifest of something else
    manifest = Manifest.read(home / MANIFEST)
    part = part_of(manifest.parts[0].name)
    if style not in (None, manifest.style) or (stem is not None and (part is None or part["stem"] != stem)):
        return None
    return _of_manifest(home, manifest, names)


def _of_manifest(home: Path, manifest: Manifest, names: Sequence[str]) -> ShardSet:
    listed = {part.name for part in manifest.parts}
    for part in manifest.parts:
        if part.name not in names:
            raise BadModelError(f"{home / part.name} is missing: {MANIFEST} lists it")
    first = part_of(manifest.parts[0].name)
    for name in names:
        other = part_of(name)
        if manifest.style == "raw":
            alike = RAW_NAME.fullmatch(name) is not None
        else:
            alike = first is not None and other is not None and other["stem"] == first["stem"]
        if alike and name not in listed:
            raise BadModelError(f"{home / name} is not in {MANIFEST}: a foreign shard")
    paths = tuple(home / part.name for part in manifest.parts)
    for part, size in zip(manifest.parts, Pieces(paths).sizes, strict=True):
        if part.size != size:
            raise BadModelError(f"{home / part.name} has {size} bytes, {MANIFEST} says {part.size}")
    return ShardSet(manifest.style, paths, manifest)


def _raw(home: Path, names: Sequence[str]) -> ShardSet:
    """Check the names and sizes of raw shards; there is nothing else to know them by."""
    paths = raw_paths(home, names)
    found = [path.name for path in paths]
    if len(found) > MAX_PARTS:
        raise BadModelError(f"{home} holds {len(found)} shards; at most {MAX_PARTS} can be joined")
    expected = [raw_name(index) for index in range(len(found))]
    width = len(found[0]) - len("shard-")
    # `split -a N` never grows longer names.
    fixed = [f"shard-{letters(index, width)}" for index in range(min(len(found), 26**width))]
    if found != expected and found != fixed:
        wanted = expected if width == 2 else fixed
        differing = (name for name, there in zip(wanted, found, strict=False) if name != there)
        missing = next(differing, found[-1])
        raise BadModelError(
            f"{home / missing} is missing, or the shards of several files are in one directory"
        )
    sizes = Pieces(paths).sizes
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        last = number == len(sizes) - 1
        if size == 0 or size > sizes[0] or (size < sizes[0] and not last):
            raise BadModelError(
                f"{path} has {size} bytes where {sizes[0]} are expected: truncated, or a shard of another file"
            )
    return ShardSet("raw", paths, None)


def _parts(home: Path, names: Sequence[str], stem: str) -> ShardSet:
    """Check that the parts of a gguf-split set are there: 1 to N, of one N."""
    found = {name: part for name in names if (part := part_of(name)) and part["stem"] == stem}
    counts = sorted({int(part["count"]) for part in found.values()})
    if len(counts) > 1:
        raise BadModelError(
            f"{home} holds parts of {stem} from several sets, of {counts[0]} and of {counts[1]}"
        )
    if not 1 <= counts[0] <= MAX_PARTS:
        raise BadModelError(
            f"{home}: sets of 1 to {MAX_PARTS} parts can be joined, this is one of {counts[0]}"
        )
    paths = part_paths(home, found, stem, counts[0])
    foreign = found.keys() - {path.name for path in paths}
    if foreign:
        raise BadModelError(f"{home / min(foreign)} is numbered outside of its own set")
    return ShardSet("gguf-split", paths, None)
