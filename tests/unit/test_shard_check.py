"""What vx-shard --check reads: the tables of models, and values that are not finite."""

from __future__ import annotations

import json
import struct
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import F32, PAIRS, Q4, Q8, WHOLE, build, cut, join, quiet, tensor

from voxtral_pipes.errors import BadModelError, VoxError
from voxtral_pipes.formats.gguf import GgufFile
from voxtral_pipes.formats.gguf_table import TYPES, GgufTable, padded
from voxtral_pipes.formats.pieces import Pieces
from voxtral_pipes.formats.shard_check import check_finite, look, sums

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


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
