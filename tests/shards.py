"""GGUF files built from bytes, cut into shards and joined; imported by name, not collected."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from voxtral_pipes.formats.gguf_table import TYPES, GgufTable
from voxtral_pipes.formats.new_files import NewFiles
from voxtral_pipes.formats.pieces import Pieces
from voxtral_pipes.formats.shard import plan, split_gguf, split_raw
from voxtral_pipes.formats.shard_check import check_complete
from voxtral_pipes.formats.shard_join import join_bytes
from voxtral_pipes.formats.shard_set import find_shards

Q4, Q8, F32 = 2, 8, 0


def quiet(_: int) -> None:
    return


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def build(
    tensors: list[tuple[str, tuple[int, ...], int, bytes]], pairs: list[bytes], alignment: int = 32
) -> bytes:
    """Make a GGUF as the writers of these models do: contiguous, nothing behind the last tensor."""
    table, data = b"", b""
    for name, ne, kind, values in tensors:
        data += bytes(-len(data) % alignment)
        table += text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, len(data))
        data += values
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + table
    return head + (bytes(-len(head) % alignment) + data if tensors else b"")


def tensor(
    name: str, ne: tuple[int, ...], kind: int, seed: int = 0
) -> tuple[str, tuple[int, ...], int, bytes]:
    _, elements, size = TYPES[kind]
    count = int(np.prod(ne)) // elements * size
    # Small numbers: finite whatever type they are taken for.
    return name, ne, kind, np.random.default_rng(seed).integers(0, 60, count, np.uint8).tobytes()


SOME = [
    tensor("mm_audio_embeddings.tok_embeddings.weight", (64, 9), Q4, 1),
    tensor("norm.weight", (77,), F32, 2),
    tensor("layers.0." + "x" * 80, (32, 5), Q8, 3),
    tensor("stem", (3, 4, 5), F32, 4),
    tensor("last", (32,), Q4, 5),
]


PAIRS = [
    pair("general.architecture", 8, text("voxtral-tts")),
    pair("words", 9, struct.pack("<IQ", 8, 3) + text("eins") + text("zwei") + text("drei")),
    pair("numbers", 9, struct.pack("<IQ3I", 4, 3, 1, 2, 3)),
]

WHOLE = build(SOME, PAIRS)


def cut(data: bytes, home: Path, size: int, style: str = "raw", *, manifest: bool = False) -> Path:
    """Cut `data` into `home`."""
    source = home.parent / f"{home.name}.in"
    source.write_bytes(data)
    with NewFiles() as files:
        if style == "raw":
            split_raw(
                files, Pieces([source]).stream(), source.name, size, home, manifest=manifest, progress=quiet
            )
        else:
            table = GgufTable(Pieces([source]))
            parts = plan(table, size, allow_oversize=True)
            split_gguf(files, table, home / "m", parts, manifest=manifest, progress=quiet)
    return home


def join(path: Path) -> bytes:
    shards = find_shards(path)
    assert shards is not None
    check_complete(shards)
    size, pieces = join_bytes(shards)
    whole = b"".join(pieces)
    assert len(whole) == size
    return whole


def names(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir())
