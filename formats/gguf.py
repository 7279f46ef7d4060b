"""Models in GGUF: one file, its raw byte shards, or a gguf-split set (formats.md sections 0 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtral_pipes.formats.family import foreign, require_ours
from voxtral_pipes.formats.gguf_table import TYPES, GgufTable
from voxtral_pipes.formats.pieces import Pieces
from voxtral_pipes.formats.table import Place, TensorFile, TensorInfo
from voxtral_pipes.formats.virtual import VirtualFile

TYPE_NAMES: Mapping[int, str] = {kind: TYPES[kind][0] for kind in (0, 1, 2, 8, 30)}
"""What can be computed with, by ggml type."""


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
        tables = [_Table(Pieces(file.paths)) for file in files]
        if raw:
            files[0].check_end(tables[0].end, tables[0].alignment)
        self.metadata: Mapping[str, Any] = tables[0].metadata
        """Scalars and strings of the (first) header; arrays are left out."""
        if len(tables) > 1 or self.metadata.get("split.count", 0) not in (0, 1):
            check_set(tables)
        super().__init__(
            {
                entry.name: Place(file, entry.begin, TensorInfo(entry.shape, entry.type))
                for file, table in zip(files, tables, strict=True)
                for entry in table.entries
            }
        )


class _Table(GgufTable):
    """A header of tensors that can be computed with."""

    def check_types(self, names: Sequence[str], kinds: Sequence[int]) -> None:
        for name, kind in zip(names, kinds, strict=True):
            if kind not in TYPE_NAMES:
                if foreign(names):
                    require_ours(names, self.label)  # the family says more than the type
                raise self.fail(
                    f"tensor {name!r:.120} has the ggml type {kind}; {', '.join(TYPE_NAMES.values())} can be read"
                )


def check_set(tables: Sequence[GgufTable]) -> None:
    """Check the `split.*` keys of all parts of a gguf-split set; count 0 or 1 is what a merge leaves behind.

    Raises:
        BadModelError: a part is of another set or place in it, or a tensor is in two parts.
    """
    names: set[str] = set()
    for number, table in enumerate(tables):
        count, own = table.metadata.get("split.count"), table.metadata.get("split.no")
        whole = len(tables) == 1 and count in (None, 0, 1)  # which a file may be by whatever name
        if count != len(tables) and not whole:
            raise table.fail(
                f"it is a part of a set of {count!r:.20} (split.count is {count!r:.20}), and {len(tables)} parts are "
                "there: a foreign part, or not all in one directory under the names they were given"
            )
        if own != number and not whole:
            raise table.fail(
                f"it says it is part {own!r:.20} (split.no is {own!r:.20}), and its name says {number}"
            )
        for entry in table.entries:
            if entry.name in names:
                raise table.fail(f"tensor {entry.name!r:.120} is in a part before this one, too")
            names.add(entry.name)
    for table in tables:
        total = table.metadata.get("split.tensors.count", len(names))
        if total != len(names):
            raise table.fail(f"split.tensors.count is {total!r:.20}, and the set holds {len(names)} tensors")
