"""formats/safetensors.py against the `safetensors` package, and against hostile files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.safetensors import SafetensorsFile

TENSORS = {
    "a": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
    "b.weight": torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1)),
    "c": torch.tensor([1, 2, 3], dtype=torch.int64),
    "d": torch.tensor(7.0, dtype=torch.float16),
    "e": torch.zeros(0, 4),
    "f": torch.arange(9, dtype=torch.uint8),
}
DTYPES = {
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F16": torch.float16,
    "I64": torch.int64,
    "U8": torch.uint8,
}


def tensor_of(file: SafetensorsFile, name: str) -> torch.Tensor:
    info = file.tensors[name]
    data = file.bytes(name)
    flat = (
        torch.frombuffer(data, dtype=DTYPES[info.type]) if data else torch.empty(0, dtype=DTYPES[info.type])
    )
    return flat.reshape(info.shape)


def test_agrees_with_the_package(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    file = SafetensorsFile.open([path])
    with safe_open(path, framework="pt") as theirs:
        assert set(theirs.keys()) == file.tensors.keys() == TENSORS.keys()
        for name in TENSORS:
            part = theirs.get_slice(name)
            assert (list(file.tensors[name].shape), file.tensors[name].type) == (
                part.get_shape(),
                part.get_dtype(),
            )
            assert torch.equal(tensor_of(file, name), theirs.get_tensor(name))


@pytest.mark.parametrize("size", [101, 128, 400])
def test_raw_shards(tmp_path: Path, size: int) -> None:
    save_file(TENSORS, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    paths = []
    for i in range(0, len(data), size):
        paths.append(tmp_path / f"shard-a{chr(97 + i // size)}")
        paths[-1].write_bytes(data[i : i + size])
    file = SafetensorsFile.open(paths, raw=True)
    for name, expected in TENSORS.items():
        assert torch.equal(tensor_of(file, name).clone(), expected)
    with pytest.raises(BadModelError):
        SafetensorsFile.open(paths[:-1], raw=True)


def make_set(home: Path, weight_map: dict[str, Any] | None = None) -> Path:
    save_file({name: TENSORS[name] for name in ("a", "b.weight")}, home / "model-00001-of-00002.safetensors")
    save_file({name: TENSORS[name] for name in ("c", "d", "f")}, home / "model-00002-of-00002.safetensors")
    where = {"a": 1, "b.weight": 1, "c": 2, "d": 2}
    index = home / "model.safetensors.index.json"
    weight_map = weight_map or {name: f"model-0000{i}-of-00002.safetensors" for name, i in where.items()}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_an_index(tmp_path: Path) -> None:
    file = SafetensorsFile.from_index(make_set(tmp_path))
    assert file.tensors.keys() == {"a", "b.weight", "c", "d"}  # f is in a file, and not in the map
    for name in file.tensors:
        assert torch.equal(tensor_of(file, name), TENSORS[name])


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"zz": "model-00001-of-00002.safetensors"}, "is not in"),
        ({"a": "model-00009-of-00002.safetensors"}, "cannot be opened"),
        ({"a": "../model.safetensors"}, "not a file name"),
        ({"a": "/etc/passwd"}, "not a file name"),
        ({"a": "x\0y"}, "cannot be opened"),
        ({"a": 3}, "not a string"),
        ({"a": ".."}, "regular file"),
    ],
)
def test_a_bad_index(tmp_path: Path, weight_map: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModelError, match=message):
        SafetensorsFile.from_index(make_set(tmp_path, weight_map))


def blob(header: object, data: bytes = b"", *, text: bytes | None = None) -> bytes:
    packed = json.dumps(header).encode() if text is None else text
    return struct.pack("<Q", len(packed)) + packed + data


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HOSTILE = {
    "empty": b"",
    "text": b"this is not a model at all",
    "header length": struct.pack("<Q", 2**63) + b"{" + bytes(100),
    "beyond the file": struct.pack("<Q", 1000) + b"{}" + bytes(100),
    "cut in the data": blob(one(), bytes(7)),
    "more data": blob(one(), bytes(9)),
    "not JSON": blob(None, text=b"{not json at all}"),
    "not UTF-8": blob(None, text=b'{"\xff": 1}    '),
    "a list": blob(None, text=b"[1, 2, 3, 4, 5]"),
    "nested": blob(None, text=b'{"a":' + b"[" * 100_000),
    "duplicate": blob(
        None, bytes(8), text=b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32"}}'
    ),
    "type": blob(one("F64", offsets=(0, 16)), bytes(16)),
    "type of type": blob(one(["F32"]), bytes(8)),
    "shape": blob(one(shape=(-2,)), bytes(8)),
    "boolean shape": blob(one(shape=(True, 2)), bytes(8)),
    "huge shape": blob(one(shape=(2**62, 2**62)), bytes(8)),
    "rank": blob(one(shape=(1,) * 9 + (2,)), bytes(8)),
    "no shape": blob(one(shape=None), bytes(8)),
    "offsets": blob(one(offsets=(8, 0)), bytes(8)),
    "three offsets": blob(one(offsets=(0, 8, 16)), bytes(8)),
    "outside": blob(one(offsets=(2**40, 2**40 + 8)), bytes(8)),
    "entry": blob({"a": 3}, bytes(8)),
    "overlap": blob(one() | {"b": one()["a"]}, bytes(8)),
    "hole": blob(one(offsets=(4, 12)), bytes(12)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(HOSTILE[case])
    with pytest.raises(BadModelError) as caught:
        SafetensorsFile.open([tmp_path / "a.safetensors"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutations_raise_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    mutated = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.unlink()  # the file is still mapped where it was opened before
    path.write_bytes(mutated)
    try:
        file = SafetensorsFile.open([path])
        for name, info in file.tensors.items():
            assert len(file.bytes(name)) == info.nbytes
    except BadModelError as error:
        assert "\n" not in str(error)
