"""Cutting and joining: the same bytes over any size, and every way in which pieces can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from voxtral_pipes.errors import BadInputError, BadModelError, OutputError, VoxError
from voxtral_pipes.formats.gguf import GgufFile
from voxtral_pipes.formats.gguf_table import TYPES, GgufTable, padded
from voxtral_pipes.formats.names import MANIFEST, part_name, raw_name
from voxtral_pipes.formats.new_files import NewFiles
from voxtral_pipes.formats.pieces import Pieces
from voxtral_pipes.formats.shard import plan, split_gguf, split_raw
from voxtral_pipes.formats.shard_check import check_complete, check_finite, look, sums
from voxtral_pipes.formats.shard_join import join_bytes
from voxtral_pipes.formats.shard_set import Manifest, find_shards

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
Q4, Q8, F32 = 2, 8, 0


@pytest.fixture(autouse=True, scope="module")
def without_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", quiet)
        yield


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


# --- names


def test_names_are_those_of_split(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(1400))
    subprocess.run(["split", "-b", "2", "in", "shard-"], cwd=tmp_path, check=True)
    assert names(tmp_path)[1:] == [raw_name(index) for index in range(700)]
    assert [raw_name(i) for i in (0, 649, 650, 17549, 17550)] == [
        "shard-aa", "shard-yz", "shard-zaaa", "shard-zyzz", "shard-zzaaaa",
    ]  # fmt: skip
    assert part_name("m", 0, 3) == "m-00001-of-00003.gguf"


@given(st.integers(0, 10**7))
def test_names_sort_in_order(index: int) -> None:
    assert raw_name(index) < raw_name(index + 1)


def test_pieces_that_split_has_made_are_taken(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(WHOLE)
    for width in (1, 2, 3):
        home = tmp_path / str(width)
        home.mkdir()
        subprocess.run(["split", "-b", "150", "-a", str(width), "../in", "shard-"], cwd=home, check=True)
        assert join(home) == WHOLE


def test_sizes_of_types_are_those_of_the_package() -> None:
    for kind, (name, elements, size) in TYPES.items():
        theirs = gguf.GGMLQuantizationType(kind)
        assert (theirs.name, gguf.GGML_QUANT_SIZES[theirs]) == (name, (elements, size))


# --- the same bytes


@settings(max_examples=200, deadline=None)
@given(data=st.binary(min_size=1, max_size=700), size=st.integers(1, 400), manifest=st.booleans())
def test_raw_split_then_join_is_the_identity(data: bytes, size: int, manifest: bool) -> None:
    # What begins as a model but is none is only joined where a manifest says that it was so.
    assume(manifest or not (data.startswith(b"GGUF") or data[8:9] == b"{"))
    with tempfile.TemporaryDirectory() as folder:
        home = cut(data, Path(folder) / "shards", size, manifest=manifest)
        assert len(names(home)) == -(-len(data) // size) + manifest
        assert join(home) == data
        assert join(home / "shard-aa") == data
        if manifest:
            assert join(home / MANIFEST) == data


shapes = st.one_of(
    st.tuples(st.just(Q4), st.tuples(st.sampled_from([32, 64]), st.integers(1, 4))),
    st.tuples(st.just(Q8), st.tuples(st.just(32))),
    st.tuples(st.just(F32), st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)),
)


@FEW
@given(
    drawn=st.lists(shapes, max_size=12), size=st.integers(1, 1500), alignment=st.sampled_from([None, 32, 64]),
    n_pairs=st.integers(0, 3), manifest=st.booleans(),
)  # fmt: skip
def test_gguf_split_then_join_is_the_identity(
    drawn: list[tuple[int, tuple[int, ...]]], size: int, alignment: int | None, n_pairs: int, manifest: bool
) -> None:
    tensors = [tensor(f"t{i}", ne, kind, i) for i, (kind, ne) in enumerate(drawn)]
    pairs = PAIRS[:n_pairs]
    if alignment:
        pairs = [*pairs, pair("general.alignment", 4, struct.pack("<I", alignment))]
    data = build(tensors, pairs, alignment or 32)
    with tempfile.TemporaryDirectory() as folder:
        home = cut(data, Path(folder) / "parts", size, "gguf-split", manifest=manifest)
        assert join(home) == data
        paths = sorted(home.glob("*.gguf"))
        held = GgufFile(paths)
        assert {name: bytes(held.bytes(name)) for name in held.tensors} == {t[0]: t[3] for t in tensors}
        for path in paths:
            assert path.stat().st_size % 32 == 0
            assert path.stat().st_size <= size or len(GgufTable(Pieces([path])).entries) <= 1


def test_parts_are_what_the_package_reads(tmp_path: Path) -> None:
    home = cut(WHOLE, tmp_path / "parts", 800, "gguf-split")
    found = []
    parts = sorted(home.iterdir())
    assert len(parts) > 2
    for number, path in enumerate(parts):
        reader = gguf.GGUFReader(path)
        kinds = {
            key: (field.types[-1].name, field.parts[-1][0])
            for key, field in reader.fields.items()
            if key.startswith("split.")
        }
        assert kinds == {
            "split.no": ("UINT16", number), "split.count": ("UINT16", len(parts)), "split.tensors.count": ("INT32", 5),
        }  # fmt: skip
        assert ("words" in reader.fields) == (number == 0)
        found += [(t.name, t.data.tobytes()) for t in reader.tensors]
    assert found == [(name, values) for name, _, _, values in SOME]


def test_a_merged_file_loses_its_split_keys_only(tmp_path: Path) -> None:
    merged = build(SOME, [*PAIRS, pair("split.count", 2, struct.pack("<H", 0))])
    assert join(cut(merged, tmp_path / "parts", 900, "gguf-split")) == WHOLE
    part = build(SOME, [*PAIRS, pair("split.count", 2, struct.pack("<H", 2))])
    with pytest.raises(BadInputError, match="join the set first"):
        cut(part, tmp_path / "again", 900, "gguf-split")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(WHOLE)
    table = GgufTable(Pieces([tmp_path / "in"]))
    with pytest.raises(BadInputError, match=r"tensor 'mm_audio.*--allow-oversize"):
        plan(table, 400, allow_oversize=False)
    with pytest.raises(BadInputError, match="the metadata"):
        plan(table, 100, allow_oversize=False)
    sizes = [len(part) for part in plan(table, 400, allow_oversize=True)]
    assert sum(sizes) == 5 and max(sizes[1:]) >= 1


# --- what is wrong with pieces


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def copy(path: Path, other: Path) -> None:
    other.write_bytes(path.read_bytes())


Harm = Callable[[Path], object]
RAW: dict[str, tuple[Harm, str]] = {
    "first missing": (lambda h: (h / "shard-aa").unlink(), "shard-aa is missing"),
    "middle missing": (lambda h: (h / "shard-ac").unlink(), "shard-ac is missing"),
    "last missing": (lambda h: (h / "shard-ah").unlink(), "shard is missing|is missing"),
    "first twice": (lambda h: copy(h / "shard-aa", h / "shard-ab"), "GGUF file of its own|ab holds what shard-aa"),
    "last twice": (lambda h: copy(h / "shard-ag", h / "shard-ah"), "twice, or foreign|shard-ah has"),
    "middle truncated": (lambda h: shorten(h / "shard-ac"), "shard-ac has 229 bytes"),
    "last truncated": (lambda h: shorten(h / "shard-ah"), "truncated|shard-ah has"),
    "last empty": (lambda h: (h / "shard-ah").write_bytes(b""), "shard-ah has 0 bytes"),
    "too long": (lambda h: append(h / "shard-ac", b"x"), "shard-ac has 231"),
    "foreign one more": (lambda h: (h / "shard-ai").write_bytes(bytes(100)), "shard-ah has|not in manifest"),
    "foreign name": (lambda h: (h / "shard-ba").write_bytes(bytes(100)), "is missing|not in manifest"),
    "nothing but a link": (lambda h: (h / "shard-ac").rename(h / "x").with_name("shard-ac").symlink_to("none"), "-ac"),
    "a directory": (lambda h: (h / "shard-ac").rename(h / "x").with_name("shard-ac").mkdir(), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("manifest", [False, True])
@pytest.mark.parametrize("case", RAW)
def test_harmed_raw_pieces_are_refused(tmp_path: Path, case: str, manifest: bool) -> None:
    home = cut(WHOLE, tmp_path / "shards", 230, manifest=manifest)
    assert names(home)[-1] == "shard-ah"
    harm, message = RAW[case]
    harm(home)
    with pytest.raises(BadModelError, match=message) as caught:
        join(home)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadModelError):
        list(sums(look(home), quiet))


def test_a_manifest_tells_order_and_every_bit(tmp_path: Path) -> None:
    home = cut(WHOLE, tmp_path / "shards", 200, manifest=True)
    swap(home / "shard-af", home / "shard-ag")
    assert look(home).manifest  # the headers are right
    with pytest.raises(BadModelError, match="shard-af holds what shard-ag should hold"):
        join(home)
    swap(home / "shard-af", home / "shard-ag")
    data = bytearray((home / "shard-ae").read_bytes())
    data[77] ^= 1
    (home / "shard-ae").write_bytes(data)
    with pytest.raises(BadModelError, match="shard-ae is damaged or foreign"):
        join(home)
    with pytest.raises(BadModelError, match="shard-ae is damaged or foreign"):
        list(sums(look(home), quiet))


def test_a_manifest_allows_bytes_that_are_no_whole_model(tmp_path: Path) -> None:
    for number, data in enumerate((WHOLE[:-40], b"GGUFxxxx" * 9)):
        assert join(cut(data, tmp_path / f"with{number}", 100, manifest=True)) == data
        with pytest.raises(BadModelError):
            join(cut(data, tmp_path / f"without{number}", 100))


def part(home: Path, number: int) -> Path:
    return sorted(home.glob("m-*"))[number]


PARTS: dict[str, tuple[Harm, str]] = {
    "first missing": (lambda h: part(h, 0).unlink(), "m-00001-of-00004.gguf is missing"),
    "last missing": (lambda h: part(h, -1).unlink(), "m-00004-of-00004.gguf is missing"),
    "reordered": (lambda h: swap(part(h, 1), part(h, 2)), "its name says 1|another order|has"),
    "doubled": (lambda h: copy(part(h, 1), part(h, 2)), "split.no is 1|holds what|has"),
    "truncated": (lambda h: part(h, 1).write_bytes(part(h, 1).read_bytes()[:-33]), "truncated|has"),
    "longer": (lambda h: append(part(h, 1), bytes(64)), "follow the last tensor|has"),
    "foreign": (lambda h: copy(part(h.parent / "other", 1), part(h, 1)), "split.count is|has"),
    "of two sets": (lambda h: copy(part(h, 1), h / "m-00002-of-00009.gguf"), "several sets|not in manifest"),
    "outside": (lambda h: copy(part(h, 1), h / "m-00005-of-00004.gguf"), "outside of its own set|not in manifest"),
    "two sets": (lambda h: copy(part(h, 1), h / "n-00001-of-00001.gguf"), "several files"),
    "both styles": (lambda h: (h / "shard-aa").write_bytes(b"1"), "several files"),
}  # fmt: skip


@pytest.mark.parametrize("manifest", [False, True])
@pytest.mark.parametrize("case", PARTS)
def test_harmed_parts_are_refused(tmp_path: Path, case: str, manifest: bool) -> None:
    cut(build([tensor(f"other{i}", (64,), F32) for i in range(9)], []), tmp_path / "other", 600, "gguf-split")
    home = cut(WHOLE, tmp_path / "parts", 750, "gguf-split", manifest=manifest)
    assert len(list(home.glob("m-*"))) == 4
    harm, message = PARTS[case]
    harm(home)
    if manifest and "several files" in message:  # the manifest says which
        assert join(home) == WHOLE
        return
    with pytest.raises(BadModelError, match=message):
        join(home)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        pairs = [pair("split.count", 2, struct.pack("<H", 2)), pair("split.no", 2, struct.pack("<H", number))]
        (tmp_path / part_name("m", number, 2)).write_bytes(build([tensor("a", (8,), F32)], pairs))
    with pytest.raises(BadModelError, match="'a' is in a part before this one"):
        join(tmp_path)


MANIFESTS = {
    "not JSON": (b"{", "not valid JSON"),
    "other": (b"{}", "no manifest of vx-shard"),
    "format": (b'{"format": "x"}', "format"),
    "version": (b'{"format": "vx-shard", "version": 2}', "version"),
    "style": (b'{"format": "vx-shard", "version": 1, "style": "zip"}', "style"),
    "no parts": (b'{"format": "vx-shard", "version": 1, "style": "raw", "parts": []}', "parts has 0"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_malformed_manifests(tmp_path: Path, case: str) -> None:
    data, message = MANIFESTS[case]
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(BadModelError, match=message):
        find_shards(tmp_path / MANIFEST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../in"}, "not a file name"), ({"name": ""}, "not a file name"), ({"name": "shard-ab"}, "twice"),
        ({"size": -1}, "size"), ({"size": 2**70}, "size"), ({"size": 7}, "its parts have"),
        ({"sha256": "0" * 63}, "sha256"), ({"sha256": None}, "sha256"), ({"name": "shard-aaa"}, "is missing"),
    ],
)  # fmt: skip
def test_malformed_entries_of_a_manifest(tmp_path: Path, change: dict[str, object], message: str) -> None:
    home = cut(WHOLE, tmp_path / "shards", 200, manifest=True)
    values = json.loads((home / MANIFEST).read_bytes())
    assert values["sha256"] == hashlib.sha256(WHOLE).hexdigest() and values["size"] == len(WHOLE)
    values["parts"][0].update(change)
    (home / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BadModelError, match=message):
        find_shards(home)


def test_manifests_of_something_else_do_not_matter(tmp_path: Path) -> None:
    home = cut(WHOLE, tmp_path / "shards", 200)
    for other in (b"{}", b'{"format": 3}', b'{"name": "app", "parts": 1, "format": "web"}'):
        (home / MANIFEST).write_bytes(other)
        assert join(home) == join(home / "shard-ac") == WHOLE


def test_a_whole_file_by_the_name_of_a_part(tmp_path: Path) -> None:
    (tmp_path / part_name("m", 0, 1)).write_bytes(WHOLE)
    assert join(tmp_path) == WHOLE


def test_what_was_behind_the_last_tensor_is_not_made_again(tmp_path: Path) -> None:
    home = cut(WHOLE + bytes(20), tmp_path / "parts", 800, "gguf-split", manifest=True)
    assert join(home) == WHOLE


def test_a_safetensors_index(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model-1.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    held = look(tmp_path)
    assert (held.form, [t.name for t in held.tensors], check_finite(held, quiet)) == ("index", ["a"], 1)
    assert [path.name for path, _ in sums(held, quiet)] == ["model-1.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(BadModelError, match="model-2"):
        look(index)


def test_a_manifest_is_read_as_written(tmp_path: Path) -> None:
    home = cut(WHOLE, tmp_path / "shards", 200, manifest=True)
    assert Manifest.read(home / MANIFEST).encode() == (home / MANIFEST).read_bytes()


# --- headers


def test_the_table_agrees_with_the_reader_of_models(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(WHOLE)
    table, file = GgufTable(Pieces([tmp_path / "a.gguf"])), GgufFile([tmp_path / "a.gguf"])
    assert {e.name: (e.shape, e.type, e.nbytes) for e in table.entries} == {
        name: (info.shape, info.type, info.nbytes) for name, info in file.tensors.items()
    }
    table.check_contiguous()
    for entry in table.entries:
        assert table.source.read(entry.begin, entry.nbytes) == bytes(file.bytes(entry.name))
    spans = [WHOLE[begin:end] for begin, end in table.spans.values()]
    assert spans == PAIRS
    assert all(
        after.begin == before.begin + padded(before.nbytes, 32) for before, after in pairwise(table.entries)
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_headers_raise_nothing_else(data: st.DataObject) -> None:
    mutated = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 700))
        kind = data.draw(st.sampled_from(["byte", "u64", "drop", "end"]))
        if kind == "byte":
            mutated[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif kind == "u64":
            mutated[at : at + 8] = struct.pack(
                "<Q", data.draw(st.sampled_from([0, 1, 2**31, 2**62, 2**64 - 1]))
            )
        elif kind == "drop":
            del mutated[at : at + data.draw(st.integers(1, 40))]
        else:
            del mutated[data.draw(st.integers(0, len(WHOLE))) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(mutated)
        try:
            held = look(path)
            check_finite(held, quiet)
        except BadModelError as error:
            assert str(error) and len(str(error)) < 600
        if mutated:
            try:
                assert join(cut(bytes(mutated), Path(folder) / "parts", 500, "gguf-split"))
            except VoxError as error:
                assert str(error)


def test_holes_are_told(tmp_path: Path) -> None:
    data = bytearray(build([tensor("a", (8,), F32), tensor("b", (8,), F32)], []))
    at = data.index(b"\x01\0\0\0\0\0\0\0b") + 9 + 4 + 8 + 4
    data[at : at + 8] = struct.pack("<Q", 64)
    (tmp_path / "a.gguf").write_bytes(bytes(data) + bytes(32))
    [table] = look(tmp_path / "a.gguf").tables
    with pytest.raises(BadModelError, match="tensor 'b' begins at"):
        table.check_contiguous()


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (F32, struct.pack("<2f", 1, float("nan")), "value 1 "),
        (1, struct.pack("<2e", 1, float("inf")), "value 1 "),
        (30, b"\x80\x3f\x80\xff", "value 1 "),
        (Q4, bytes(18) + b"\x00\x7c" + bytes(16), "the scale of block 1 "),
        (Q8, b"\x01\xfe" + bytes(32), "the scale of block 0 "),
    ],
)
def test_values_that_are_not_finite_are_found(tmp_path: Path, kind: int, values: bytes, message: str) -> None:
    _, elements, size = TYPES[kind]
    ne = (len(values) // size * elements,)
    home = cut(build([("good", (1,), F32, bytes(4)), ("bad", ne, kind, values)], []), tmp_path / "s", 50)
    with pytest.raises(BadModelError, match=f"tensor 'bad': {message}is not finite"):
        check_finite(look(home), quiet)


# --- new files


def test_nothing_is_overwritten_and_nothing_left(tmp_path: Path) -> None:
    home = tmp_path / "out" / "deep"
    with pytest.raises(OutputError, match="exists already"), NewFiles() as files:
        files.folder(home)
        files.finish(files.open(home / "a"))
        files.finish(files.open(home / "b"))
        (home / "b").write_bytes(b"someone else's")
        files.publish()
    assert names(home) == ["b"]
    assert (home / "b").read_bytes() == b"someone else's"
    with NewFiles() as files:
        files.folder(tmp_path / "new" / "er")
        files.open(tmp_path / "new" / "er" / "c").close()
    assert names(tmp_path) == ["out"]
    with pytest.raises(OutputError, match="not a directory"), NewFiles() as files:
        files.folder(home / "b")


@pytest.mark.parametrize("style", ["raw", "gguf-split"])
def test_directories_with_pieces_are_refused(tmp_path: Path, style: str) -> None:
    home = cut(WHOLE, tmp_path / "home", 800, style)
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(OutputError, match="exists already"):
        cut(WHOLE, home, 400, style)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


def test_empty_inputs_and_too_many_pieces_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInputError, match="is empty"):
        cut(b"", tmp_path / "home", 10)
    assert names(tmp_path) == ["home.in"]
    monkeypatch.setattr("voxtral_pipes.formats.shard.MAX_PARTS", 20)
    with pytest.raises(BadInputError, match="more than 20 shards"):
        cut(bytes(21), tmp_path / "home", 1)
    assert names(tmp_path) == ["home.in"]
