"""models/staging.py: what lands on the device is what the file holds, however it is cut; here the device is the CPU."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from asr_models import SMALL

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.kernels.packed import PackedWeight
from voxtral_pipes.models import weights
from voxtral_pipes.models.checkpoint import AsrCheckpoint
from voxtral_pipes.models.random_model import cut_raw, make_asr_model
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.models.staging import plan, staged

CPU = torch.device("cpu")
NAMES = [*encoder_shapes(SMALL), *decoder_shapes(SMALL)]
LAYOUTS: tuple[Literal["safetensors", "hf", "gguf-q4"], ...] = ("safetensors", "hf", "gguf-q4")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("staging")
    for layout in LAYOUTS:
        make_asr_model(home / layout, SMALL, layout, seed=5)
    make_asr_model(home / "cut", SMALL, "gguf-q4", seed=5)
    cut_raw(home / "cut", 5001)
    return home


def opened(home: Path, layout: str) -> AsrCheckpoint:
    return AsrCheckpoint(files_at(home / layout))


@pytest.mark.parametrize("capacity", [1, 7, 64, 100, 1000])
def test_a_plan_covers_each_tensor_once_and_fills_each_buffer(capacity: int) -> None:
    sizes = {"a": 100, "b": 1, "none": 0, "c": 64, "d": 235, "nothing": 0}
    loads = list(plan(sizes, capacity))
    for load in loads:
        assert [piece.at for piece in load] == [
            sum(before.size for before in load[:number]) for number in range(len(load))
        ]
    filled = [sum(piece.size for piece in load) for load in loads]
    assert all(size == capacity for size in filled[:-1]) and filled[-1] <= capacity
    pieces = [piece for load in loads for piece in load]
    reached: Counter[str] = Counter()
    for piece in pieces:
        assert piece.begin == reached[piece.name]
        reached[piece.name] += piece.size
        assert piece.last == (reached[piece.name] == sizes[piece.name])
    assert [piece.name for piece in pieces if piece.last] == list(sizes)


def test_a_plan_of_nothing() -> None:
    assert list(plan({}, 10)) == list(plan({}, 0)) == []
    assert [[piece.name for piece in load] for load in plan({"a": 0, "b": 0}, 0)] == [["a"], ["b"]]


@pytest.mark.parametrize("layout", [*LAYOUTS, "cut"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"buffer_bytes": 1000, "buffers": 1, "read_bytes": 999},
        {"buffer_bytes": 4096, "buffers": 2, "read_bytes": 1024, "readers": 3},
        {"buffer_bytes": 30_011, "buffers": 3, "read_bytes": 50_000, "readers": 1},
    ],
)
def test_what_arrives_is_what_is_stored(home: Path, layout: str, settings: dict[str, int]) -> None:
    checkpoint = opened(home, layout)
    arrived = list(staged(checkpoint, NAMES, CPU, **settings))
    assert [name for name, _ in arrived] == NAMES
    for name, data in arrived:
        assert data.dtype == torch.uint8
        assert data.numpy().tobytes() == bytes(checkpoint.bytes(name)), name


def test_no_tensors() -> None:
    assert list(staged(None, [], CPU)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_made_of_it_as_of_the_map(
    home: Path, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(home, layout)
    mapped = weights.load_weights(checkpoint, NAMES, CPU, dtype)
    monkeypatch.setattr(
        weights, "_mapped", lambda checkpoint, name: dict(staged(checkpoint, [name], CPU))[name]
    )
    read = weights.load_weights(checkpoint, NAMES, CPU, dtype)
    assert mapped.keys() == read.keys()
    for name, one in mapped.items():
        other = read[name]
        if isinstance(one, PackedWeight):
            assert isinstance(other, PackedWeight) and one.format == other.format
            assert torch.equal(one.blocks, other.blocks), name
        else:
            assert isinstance(other, torch.Tensor) and one.dtype == other.dtype == dtype
            assert torch.equal(one, other), name


def test_a_missing_tensor(home: Path) -> None:
    with pytest.raises(BadModelError, match=r"tensor layers\.99\.x is missing"):
        list(staged(opened(home, "safetensors"), ["layers.99.x"], CPU))


def test_a_file_that_is_cut_short_while_it_is_open(tmp_path: Path) -> None:
    make_asr_model(tmp_path, SMALL, "safetensors", seed=5)
    path = tmp_path / "consolidated.safetensors"
    checkpoint = AsrCheckpoint(files_at(tmp_path))
    size = path.stat().st_size
    os.truncate(path, size // 2)
    message = (
        rf"{re.escape(str(path))} was cut short while in use: it had {size} bytes, \d+ at \d+ are needed"
    )
    with pytest.raises(BadModelError, match=message):
        list(staged(checkpoint, NAMES, CPU, buffer_bytes=65536))


def test_a_file_that_cannot_be_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(home, "safetensors")
    real, calls = os.preadv, []

    def broken(descriptor: int, buffers: Any, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    message = r"consolidated.safetensors cannot be read: Input/output error, \d+ bytes at \d+ are needed"
    with pytest.raises(BadModelError, match=message):
        list(staged(checkpoint, NAMES, CPU, buffer_bytes=65536, readers=2))


def test_short_reads_are_continued(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(home, "cut")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: real(file, [buffers[0][:977]], at))
    for name, data in staged(checkpoint, NAMES, CPU):
        assert data.numpy().tobytes() == bytes(checkpoint.bytes(name)), name


def test_more_than_a_tensor_holds(home: Path) -> None:
    checkpoint = opened(home, "gguf-q4")
    with pytest.raises(ValueError, match=r"norm.weight has \d+ bytes, not 8 at"):
        checkpoint.read_into(
            "norm.weight", checkpoint.info("norm.weight").nbytes - 7, memoryview(bytearray(8))
        )
