"""vx-peek on frames: what it shows of each, and what it says is wrong."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from id_streams import cut, hello, pipe, spoken
from peeked import Seen, bf16, codes, load, mels, tensor

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Frame, FrameReader, Tensor, encode
from voxtral_pipes.models.codes import EMPTY_AUDIO, END_AUDIO
from voxtral_pipes.models.collect import NpzCollector
from voxtral_pipes.stages.base import Outgoing
from voxtral_pipes.stages.peek import Peek, as_json, as_line, describe


def statistics(value: Tensor) -> dict[str, Any]:
    shown = describe(Frame("data", 0, tensors={"x": value}), None)
    json.loads(as_json(shown))
    numbers: dict[str, Any] = shown["tensors"]["x"]
    return numbers


# --- what is shown


def test_a_data_frame_in_a_line_and_as_json() -> None:
    frame = Frame("data", 1, 3, 3840, 1280, tensors={"mel": tensor([[-0.5, 1], [1, 2.5]])})
    shown = describe(frame, 16000)
    assert as_line(shown) == "data   s=1  n=3  t=3840 (0.240 s)  u=1280  mel f32[2,2] min -0.5 mean 1 max 2.5"
    assert json.loads(as_json(shown)) == {
        "kind": "data", "stream": 1, "n": 3, "t": 3840, "u": 1280, "seconds": 0.24,
        "tensors": {
            "mel": {"dtype": "f32", "shape": [2, 2], "min": -0.5, "mean": 1.0, "max": 2.5, "nan": 0, "inf": 0}
        },
    }  # fmt: skip


def test_ids_are_shown_up_to_a_bound_and_whole_in_json() -> None:
    shown = describe(Frame("data", 0, 0, 0, 1280, ids=list(range(40))), None)
    assert as_line(shown).endswith("i=[" + " ".join(map(str, range(32))) + " and 8 more]")
    assert json.loads(as_json(shown))["ids"] == list(range(40))
    assert as_line(describe(Frame("data", 0, ids=[]), None)).endswith("i=[]")


def test_metadata_is_shown() -> None:
    assert as_line(describe(hello(), 16000)) == (
        'hello  v=[1, 0]  by=vx-test/0.1.0  chain=["vx-test"]  out={"i": {"d": "u32", "h": [-1]}}  tb=16000'
    )
    assert (
        as_line(describe(Frame("open", 0, meta={"delay_tokens": 6}), 16000))
        == 'open   s=0  m={"delay_tokens": 6}'
    )
    assert (
        as_line(describe(Frame("mark", 0, meta={"audio_end": 5}), 16000)) == 'mark   s=0  m={"audio_end": 5}'
    )
    assert as_line(describe(Frame("end", 0, 7), 16000)) == "end    s=0  n=7"
    assert as_line(describe(Frame("end"), 16000)) == "end"
    error = Outgoing("vx-mel").error(BadInputError("no way"))
    assert as_line(describe(error, 16000)) == 'error  code=bad-input  msg="no way"  by=vx-mel  fatal=true'
    assert as_line(describe(Frame("news", raw=b"\x80"), 16000)) == "news   bytes=1"
    assert as_line(describe(Frame("text", 0, 0, text="a b"), None)) == 'text   s=0  n=0  c="a b"'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tensor([1, np.nan, 3, np.inf]), {"min": 1, "mean": 2, "max": 3, "nan": 1, "inf": 1}),
        (tensor([np.nan]), {"min": None, "mean": None, "max": None, "nan": 1, "inf": 0}),
        (tensor([]), {"min": None, "mean": None, "max": None}),
        (tensor(5.0), {"min": 5, "mean": 5, "max": 5, "nan": 0, "inf": 0}),
        (tensor([1e308, 1e308], np.float64), {"min": 1e308, "mean": None, "max": 1e308, "nan": 0, "inf": 0}),
        (tensor([-3, 4], np.int64), {"min": -3, "mean": 0.5, "max": 4}),
        (tensor([7, 65535], np.uint16), {"min": 7, "mean": 32771, "max": 65535}),
        (tensor([True, False], np.bool_), {"min": 0, "mean": 0.5, "max": 1}),
        (Tensor("bool", (1,), b"\x07"), {"min": 7, "mean": 7, "max": 7}),
        (bf16([0x3F80, 0xC000]), {"min": -2, "mean": -0.5, "max": 1, "nan": 0, "inf": 0}),
        (bf16(0x3F80), {"min": 1, "mean": 1, "max": 1, "nan": 0, "inf": 0}),
    ],
)  # fmt: skip
def test_statistics_count_what_is_no_number(value: Tensor, expected: dict[str, Any]) -> None:
    assert statistics(value) == {"dtype": value.dtype, "shape": list(value.shape), **expected}


def test_nothing_that_is_shown_reaches_the_terminal_as_it_is() -> None:
    nasty = "\x1b[2J\n\x7f\u202e"
    deep: Any = nasty
    for _ in range(300):
        deep = [deep]
    meta = {"a": nasty, nasty: b"\x00", "deep": deep, "nan": float("nan"), "at": object()}
    frame = Frame("data", 0, tensors={nasty: tensor([1])}, text=nasty, meta=meta, fields={nasty: nasty})
    for line in (
        as_line(describe(frame, 1)),
        as_json(describe(frame, 1)),
        as_line(describe(Frame(nasty, raw=b""), 1)),
    ):
        assert line.isascii() and line.isprintable()


def test_long_values_are_cut() -> None:
    assert len(as_line(describe(Frame("open", 0, meta={"x": "y" * 100000}), None))) < 1200


def test_codes_show_the_semantic_ones_the_range_of_the_others_and_the_end() -> None:
    value = np.full((3, 37), 2, np.uint16)
    value[:, 0], value[0, 1:] = [8193, EMPTY_AUDIO, END_AUDIO], np.arange(36) % 21 + 2
    shown = describe(Frame("data", 0, 7, 13440, 5760, tensors={"codes": Tensor.of(value)}), 24000)
    assert as_line(shown) == (
        "data   s=0  n=7  t=13440 (0.560 s)  u=5760  codes u16[3,37] semantic [8193 EMPTY END] acoustic 2..22"
    )
    numbers = json.loads(as_json(shown))["tensors"]["codes"]
    assert numbers["semantic"] == [8193, 0, 1] and numbers["end_rows"] == [2]
    assert numbers["acoustic"] == {"min": 2, "max": 22}
    assert (numbers["min"], numbers["mean"], numbers["max"]) == (0, value.mean(), 8193)


def test_an_end_beyond_the_codes_shown_is_told() -> None:
    line = as_line(describe(Frame("data", 0, tensors={"codes": codes(*[9] * 40, END_AUDIO)}), None))
    assert line.endswith("9 and 9 more] acoustic 5..5 END in row 40")


@pytest.mark.parametrize(
    "value",
    [tensor([[1, 2]]), tensor([1, 2], np.uint16), tensor([[1]], np.uint16), Tensor("u16", (0, 37), b"")],
)
def test_what_is_called_codes_and_is_none_is_shown_as_any_tensor(value: Tensor) -> None:
    shown = describe(Frame("data", 0, tensors={"codes": value}), None)
    assert set(shown["tensors"]["codes"]) - {"nan", "inf"} == {"dtype", "shape", "min", "mean", "max"}
    assert "semantic" not in as_line(shown)


# --- what is wrong


def test_a_whole_stream_has_no_problems() -> None:
    seen = Seen(pipe({0: cut(spoken("Hello the world"), [1, 2]), 5: cut([])}))
    assert seen.problems == 0 and seen.reported == []
    assert sorted(seen.kinds) == ["data"] * 4 + ["end"] * 3 + ["hello"] + ["open"] * 2
    assert set(seen.rates) == {16000}


def good() -> list[Frame]:
    return list(pipe({0: cut(spoken("Hello"), [1, 1])}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames.clear(), "input is empty"),
        (lambda frames: frames.pop(), "without an 'end' frame"),
        (lambda frames: frames.pop(0), "the first frame is 'open', not 'hello'"),
        (lambda frames: frames.pop(3), "frame 1 is missing, 2 came instead"),
        (lambda frames: frames.insert(2, frames[1]), "opened twice"),
        (lambda frames: frames.append(frames[2]), "frames follow the end of the pipe"),
        (lambda frames: frames.insert(2, hello()), "second 'hello'"),
        (lambda frames: frames.__setitem__(0, hello(rate_hz=0)), "declares the clock 0"),
        (lambda frames: frames.__setitem__(0, hello(())), "does not say what is sent"),
    ],
)
def test_what_is_wrong_is_said_and_everything_is_shown(change: Any, message: str) -> None:
    frames = good()
    change(frames)
    seen = Seen(frames)
    assert seen.kinds == [frame.kind for frame in frames]
    assert seen.problems == 1 and message in seen.reported[0]


def test_broken_bytes_are_reported_once_after_what_could_be_read() -> None:
    data = b"".join(map(encode, good()))
    for end, message in ((-20, "ends inside frame"), (-15, "without an 'end'")):
        seen = Seen(FrameReader(io.BytesIO(data[:end])))
        assert seen.problems == 1 and message in seen.reported[0], seen.reported
    seen = Seen(FrameReader(io.BytesIO(data[:200] + b"garbage" * 9)))
    assert seen.problems == 1 and seen.kinds[0] == "hello"


def test_errors_from_before_count_but_are_not_reported_again() -> None:
    outgoing = Outgoing("vx-mel")
    seen = Seen([hello(), outgoing.open(0, {}), outgoing.error(BadInputError("x"), 0), Frame("end")])
    assert seen.problems == 1 and seen.reported == []


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 400), value=st.binary(max_size=4), cut_bytes=st.integers(0, 6))
def test_whatever_the_bytes_it_shows_and_reports(at: int, value: bytes, cut_bytes: int) -> None:
    data = b"".join(map(encode, mels(2, bins=4)))
    damaged = data[:at] + value + data[at + cut_bytes :]
    collector = NpzCollector()
    lines: list[str] = []
    peek = Peek(lambda frame, rate: lines.append(as_line(describe(frame, rate))), lines.append, [collector])
    peek.run(FrameReader(io.BytesIO(damaged)))
    load(collector)
    assert peek.problems or damaged == data or len(lines) == 6
