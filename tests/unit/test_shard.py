"""Cutting and joining: names that sort, the same bytes over any size, and nothing overwritten."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from shards import F32, PAIRS, Q4, Q8, SOME, WHOLE, build, cut, join, names, pair, tensor

from voxtral_pipes.errors import BadInputError, OutputError
from voxtral_pipes.formats.gguf import GgufFile
from voxtral_pipes.formats.gguf_table import TYPES, GgufTable
from voxtral_pipes.formats.names import MANIFEST, part_name, raw_name
from voxtral_pipes.formats.new_files import NewFiles
from voxtral_pipes.formats.pieces import Pieces
from voxtral_pipes.formats.shard import plan

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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


def test_a_whole_file_by_the_name_of_a_part(tmp_path: Path) -> None:
    (tmp_path / part_name("m", 0, 1)).write_bytes(WHOLE)
    assert join(tmp_path) == WHOLE


def test_what_was_behind_the_last_tensor_is_not_made_again(tmp_path: Path) -> None:
    home = cut(WHOLE + bytes(20), tmp_path / "parts", 800, "gguf-split", manifest=True)
    assert join(home) == WHOLE


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
