"""formats/gguf.py against the `gguf` package, over every way of cutting, and against hostile files."""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.gguf import GgufFile
from voxtral_pipes.formats.table import TYPE_SIZES

Q4, Q8 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
BF16, F16 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F16
LONG = "mm_streams_embeddings.embedding_module.whisper_encoder.transformer.layers.31.feed_forward.w2.weight"


def fill(writer: gguf.GGUFWriter) -> dict[str, np.ndarray]:
    """Add tensors of every type to a writer; return their values as float32."""
    rng = np.random.default_rng(3)
    values = {}
    for name, shape, kind in (
        (LONG, (96, 64), Q4),
        ("norm.weight", (77,), None),
        ("stem", (5, 4, 3), None),
        ("half", (3, 7), F16),
        ("brain", (9, 5), BF16),
        ("eight", (8, 32), Q8),
        ("last", (1, 32), Q4),
    ):
        data = rng.standard_normal(shape).astype(np.float32)
        if kind is None:
            writer.add_tensor(name, data)
            values[name] = data
        else:
            stored = gguf.quantize(data, kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
            values[name] = gguf.dequantize(stored, kind)
    return values


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(path: Path, *, alignment: int | None = None, split: int = 0) -> dict[str, np.ndarray]:
    writer = gguf.GGUFWriter(path, "voxtral", split_max_size=split)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_string("general.name", "a name")
    writer.add_array("words", ["eins", "zwei", "drei"])
    writer.add_array("numbers", list(range(100)))
    values = fill(writer)
    finish(writer)
    return values


def values_of(file: GgufFile, name: str) -> np.ndarray:
    info = file.tensors[name]
    raw = np.frombuffer(file.bytes(name), np.uint8)
    assert raw.size == info.nbytes
    kind = gguf.GGMLQuantizationType[info.type]
    last = info.shape[-1] // TYPE_SIZES[info.type][0] * TYPE_SIZES[info.type][1]
    return gguf.dequantize(raw.reshape(*info.shape[:-1], last), kind)


def cut(data: bytes, size: int, home: Path) -> list[Path]:
    home.mkdir()
    paths = []
    for i in range(0, len(data), size):
        paths.append(home / f"shard-{chr(97 + i // size // 26)}{chr(97 + i // size % 26)}")
        paths[-1].write_bytes(data[i : i + size])
    return paths


@pytest.mark.parametrize("alignment", [None, 64, 256])
def test_agrees_with_the_package(tmp_path: Path, alignment: int | None) -> None:
    values = write(tmp_path / "a.gguf", alignment=alignment)
    file = GgufFile([tmp_path / "a.gguf"])
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert file.tensors.keys() == values.keys() == theirs.keys()
    for name, expected in values.items():
        assert file.tensors[name].shape == expected.shape
        assert bytes(file.bytes(name)) == theirs[name].data.tobytes()
        np.testing.assert_array_equal(values_of(file, name), expected)
    assert file.metadata["general.name"] == "a name"


def test_bytes_are_a_view_of_the_map_and_never_written_back(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write(path)
    before = path.read_bytes()
    first, second = GgufFile([path]), GgufFile([path])
    one, two = (np.frombuffer(first.bytes(LONG), np.uint8) for _ in range(2))
    assert one.ctypes.data == two.ctypes.data
    assert one.flags.writeable
    one[:] = 0
    assert bytes(second.bytes(LONG)) != one.tobytes()
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [211, 331, 1000, 2048])
def test_raw_shards_cut_anywhere(tmp_path: Path, size: int) -> None:
    values = write(tmp_path / "a.gguf")
    paths = cut((tmp_path / "a.gguf").read_bytes(), size, tmp_path / "shards")
    file = GgufFile(paths, raw=True)
    for name, expected in values.items():
        np.testing.assert_array_equal(values_of(file, name), expected)


def test_raw_shards_without_trailing_padding(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    whole = GgufFile([tmp_path / "a.gguf"])
    end = max(place.offset + place.info.nbytes for place in whole._places.values())
    paths = cut((tmp_path / "a.gguf").read_bytes()[:end], 700, tmp_path / "shards")
    assert bytes(GgufFile(paths, raw=True).bytes("last")) == bytes(whole.bytes("last"))


def test_incomplete_raw_shards_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    paths = cut((tmp_path / "a.gguf").read_bytes(), 512, tmp_path / "shards")
    assert len(paths) > 8
    for missing in range(len(paths)):
        with pytest.raises(BadModelError):
            GgufFile(paths[:missing] + paths[missing + 1 :], raw=True)
    with pytest.raises(BadModelError, match="twice"):
        GgufFile([*paths[:6], paths[5], *paths[6:]], raw=True)
    with pytest.raises(BadModelError, match="GGUF file of its own"):
        GgufFile([paths[0], *paths], raw=True)
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    with pytest.raises(BadModelError, match="shard-ac has 511 bytes"):
        GgufFile(paths, raw=True)


def test_split_sets(tmp_path: Path) -> None:
    values = write(tmp_path / "a.gguf", split=500)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 2
    file = GgufFile(parts)
    for name, expected in values.items():
        np.testing.assert_array_equal(values_of(file, name), expected)
    assert file.metadata["general.name"] == "a name"
    with pytest.raises(BadModelError, match="part of a set of"):
        GgufFile(parts[:-1])
    with pytest.raises(BadModelError, match="part of a set of"):
        GgufFile(parts[:1])
    with pytest.raises(BadModelError, match="says it is part 1"):
        GgufFile([parts[1], parts[0], *parts[2:]])


def test_a_merged_set_is_one_file(tmp_path: Path) -> None:
    for count in (0, 1):
        writer = gguf.GGUFWriter(tmp_path / f"{count}.gguf", "voxtral")
        writer.add_uint16("split.count", count)
        values = fill(writer)
        finish(writer)
        assert GgufFile([tmp_path / f"{count}.gguf"]).tensors.keys() == values.keys()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, ne: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def build(entries: list[bytes], data: bytes, keys: list[bytes] | None = None, version: int = 3) -> bytes:
    keys = keys or []
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(keys)) + b"".join(keys + entries)
    return head + b"\0" * (-len(head) % 32) + data


F32 = 0
GOOD = entry("a", [4], F32, 0)
HOSTILE = {
    "magic": (b"GGML" + bytes(100), "not a GGUF"),
    "empty": (b"", "not a GGUF"),
    "version": (build([GOOD], bytes(16), version=1), "version 1"),
    "big-endian": (build([GOOD], bytes(16), version=3 << 24), "version 50331648"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(64), "declares"),
    "key count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(64), "declares"),
    "name length": (build([struct.pack("<Q", 2**62)], bytes(99)), "declares"),
    "name not UTF-8": (build([struct.pack("<Q", 1) + b"\xff" + bytes(24)], bytes(99)), "UTF-8"),
    "duplicate": (build([GOOD, entry("a", [4], F32, 32)], bytes(64)), "twice"),
    "duplicate key": (build([GOOD], bytes(16), [text("k") + struct.pack("<IB", 0, 1)] * 2), "twice"),
    "type": (build([entry("a", [256], 12, 0)], bytes(256)), "ggml type 12"),
    "removed type": (build([entry("a", [32], 4, 0)], bytes(256)), "ggml type 4"),
    "dimensions": (build([entry("a", [1] * 5, F32, 0)], bytes(64)), "dimensions"),
    "no dimensions": (build([entry("a", [], F32, 0)], bytes(64)), "dimensions"),
    "zero": (build([entry("a", [0, 4], F32, 0)], bytes(64)), "shape"),
    "overflow": (build([entry("a", [2**33, 2**33], F32, 0)], bytes(64)), "shape"),
    "row": (build([entry("a", [48, 2], 2, 0)], bytes(64)), "multiple of 32"),
    "misaligned": (build([entry("a", [4], F32, 8)], bytes(64)), "begins at 8"),
    "outside": (build([entry("a", [4], F32, 2**40)], bytes(64)), "truncated"),
    "one byte short": (build([GOOD], bytes(15)), "truncated"),
    "overlap": (build([entry("a", [16], F32, 0), entry("b", [4], F32, 32)], bytes(64)), "overlap"),
    "alignment": (build([GOOD], bytes(16), [text("general.alignment") + struct.pack("<II", 4, 48)]), "power"),
    "array": (build([GOOD], bytes(16), [text("k") + struct.pack("<IIQ", 9, 0, 2**63)]), "truncated"),
    "array of arrays": (
        build([GOOD], bytes(16), [text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9]),
        "deeper",
    ),
    "array of nothing": (build([GOOD], bytes(16), [text("k") + struct.pack("<IIQ", 9, 9, 2**40)]), "items"),
    "metadata type": (build([GOOD], bytes(16), [text("k") + struct.pack("<I", 13)]), "metadata type 13"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(BadModelError, match=message) as caught:
        GgufFile([tmp_path / "a.gguf"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_smallest_files_of_both_versions(tmp_path: Path) -> None:
    for version in (2, 3):
        (tmp_path / "a.gguf").write_bytes(build([GOOD], struct.pack("<4f", 1, 2, 3, 4), version=version))
        file = GgufFile([tmp_path / "a.gguf"])
        assert np.frombuffer(file.bytes("a"), "<f4").tolist() == [1, 2, 3, 4]


def test_foreign_families_are_named(tmp_path: Path) -> None:
    q4_k = 12
    for name, family in (
        ("enc.blk.0.attn_q.weight", "voxtral.cpp"),
        ("token_embd.weight", "text model of llama.cpp"),
        ("a.blk.0.attn_q.weight", "mmproj"),
    ):
        (tmp_path / "a.gguf").write_bytes(build([entry(name, [256], q4_k, 0)], bytes(144)))
        with pytest.raises(BadModelError, match=family):
            GgufFile([tmp_path / "a.gguf"])


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match="regular file"):
        GgufFile([tmp_path])
    with pytest.raises(BadModelError, match="cannot be opened"):
        GgufFile([tmp_path / "none.gguf"])


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write(path)
    return path.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutations_raise_nothing_else(tmp_path: Path, sample: bytes, data: st.DataObject) -> None:
    mutated = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 1900))  # the header and its surroundings
        kind = data.draw(st.sampled_from(["byte", "u64", "drop", "end"]))
        if kind == "byte":
            mutated[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif kind == "u64":
            value = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1]))
            mutated[at : at + 8] = struct.pack("<Q", value)
        elif kind == "drop":
            del mutated[at : at + data.draw(st.integers(1, 40))]
        else:
            del mutated[data.draw(st.integers(0, len(sample))) :]
    path = tmp_path / "mutated.gguf"
    path.write_bytes(mutated)
    try:
        file = GgufFile([path])
        for name, info in file.tensors.items():
            assert len(file.bytes(name)) == info.nbytes
    except BadModelError as error:
        assert str(error)


def test_hostile_headers_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    huge = build([GOOD], bytes(16), [text("k") + struct.pack("<IIQ", 9, 8, 2**22) + bytes(8 * 2**15)])
    with path.open("wb") as file:
        file.write(huge)
        file.truncate(64 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadModelError):
        GgufFile([path])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 96 << 10  # the map itself is 64 MiB
