from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from id_streams import POSITION, cut, hello, pipe, spoken

from voxtral_pipes.errors import BadInputError, UnsupportedError, VoxError
from voxtral_pipes.formats.frame import Frame, FrameReader, Tensor, encode
from voxtral_pipes.models import picture
from voxtral_pipes.models.codes import EMPTY_AUDIO, END_AUDIO
from voxtral_pipes.models.collect import NpzCollector
from voxtral_pipes.models.columns import COLUMNS
from voxtral_pipes.models.panels import CodesPanel, HiddenPanel, bin_of
from voxtral_pipes.models.picture import Picture
from voxtral_pipes.stages.base import Hello, Outgoing, Output
from voxtral_pipes.stages.peek import Collector, Peek, as_json, as_line, describe


class Seen:
    """Runs vx-peek over frames and keeps what it shows and reports."""

    def __init__(self, frames: Iterable[Frame], *collectors: Collector) -> None:
        self.kinds: list[str] = []
        self.rates: list[int | None] = []
        self.reported: list[str] = []
        peek = Peek(self._show, self.reported.append, collectors)
        peek.run(frames)
        self.problems = peek.problems

    def _show(self, frame: Frame, rate_hz: int | None) -> None:
        self.kinds.append(frame.kind)
        self.rates.append(rate_hz)


def tensor(values: Any, dtype: Any = np.float32) -> Tensor:
    return Tensor.of(np.array(values, dtype))


def bf16(words: Any) -> Tensor:
    return Tensor.of(np.array(words, np.uint16), "bf16")


def statistics(value: Tensor) -> dict[str, Any]:
    shown = describe(Frame("data", 0, tensors={"x": value}), None)
    json.loads(as_json(shown))
    numbers: dict[str, Any] = shown["tensors"]["x"]
    return numbers


def mels(n_frames: int, *, stream: int = 0, per_frame: int = 8, bins: int = 16) -> list[Frame]:
    outgoing = Outgoing("vx-mel")
    values = np.arange(n_frames * per_frame, dtype=np.float32)[:, None] + np.zeros(bins, np.float32)
    frames = [
        outgoing.hello(Hello({"mel": {"d": "f32", "h": [-1, bins]}}), 16000),
        outgoing.open(stream, {"source": "$a.wav"}),
    ]
    for at in range(n_frames):
        rows = values[at * per_frame : (at + 1) * per_frame]
        frames.append(
            outgoing.data(
                stream, Output(160 * per_frame * (at - 2), 160 * per_frame, {"mel": Tensor.of(rows)})
            )
        )
    return [*frames, outgoing.end(stream), Frame("end")]


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


def codes(*semantic: int, acoustic: int = 5, dtype: Any = np.uint16) -> Tensor:
    rows = np.full((len(semantic), 37), acoustic, dtype)
    rows[:, 0] = semantic
    return Tensor.of(rows)


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


# --- npz


def load(collector: NpzCollector) -> dict[str, Any]:
    file = io.BytesIO()
    collector.write(file)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def test_npz_joins_tensors_ids_and_ticks() -> None:
    collector = NpzCollector()
    outgoing = Outgoing("vx-test")
    frames = [hello(), outgoing.open(3, {})]
    one = bf16([[0x3F80]])
    frames += [
        outgoing.data(3, Output(-1280, 1280, {"x": one}, [7])),
        outgoing.data(3, Output(0, 1280, {}, [8, 9])),
        outgoing.data(3, Output(1280, 1280, {"x": one, "../y": tensor(1.5)})),
    ]
    assert Seen([*frames, outgoing.end(3), Frame("end")], collector).problems == 0
    arrays = load(collector)
    assert {key: value.tolist() for key, value in arrays.items()} == {
        "tick_rate_hz": 16000,
        "s3.x": [[1], [1]], "s3.x.rows": [1, 0, 1], "s3.___y": [1.5], "s3.___y.rows": [0, 0, 1],
        "s3.frames.t": [-1280, 0, 1280], "s3.frames.u": [1280] * 3, "s3.frames.n": [0, 1, 2],
        "s3.frames.ids": [7, 8, 9], "s3.frames.n_ids": [1, 2, 0],
    }  # fmt: skip
    assert arrays["s3.x"].dtype == np.float32


def speech(values: Iterable[Mapping[str, Tensor]]) -> list[Frame]:
    """Make the frames of one stream of speech synthesis, 80 ms each."""
    outgoing = Outgoing("vx-test")
    frames = [hello(("x",), 24000), outgoing.open(0, {})]
    frames += [outgoing.data(0, Output(1920 * at, 1920, each)) for at, each in enumerate(values)]
    return [*frames, outgoing.end(0), Frame("end")]


@pytest.mark.parametrize("wide", [False, True])
def test_npz_joins_hidden_states_and_codes(wide: bool) -> None:
    states = np.random.default_rng(1).normal(size=(5, 3072)).astype(np.float32)
    words = (states.view(np.uint32) >> 16).astype(np.uint16)
    hidden = [Tensor.of(row[None]) if wide else bf16(words[at][None]) for at, row in enumerate(states)]
    collector = NpzCollector()
    frames = speech({"hidden": each, "codes": codes(at + 2)} for at, each in enumerate(hidden))
    assert Seen(frames, collector).problems == 0
    arrays = load(collector)
    expected = states if wide else (words.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(arrays["s0.hidden"], expected)
    assert arrays["s0.codes"].dtype == np.uint16 and arrays["s0.codes"][:, 0].tolist() == [2, 3, 4, 5, 6]
    assert arrays["s0.frames.t"].tolist() == [0, 1920, 3840, 5760, 7680] and arrays["tick_rate_hz"] == 24000


def test_npz_of_frames_without_numbers() -> None:
    collector = NpzCollector()
    collector.add(Frame("data", 0, seq=2**64 - 1))
    arrays = load(collector)
    assert arrays["s0.frames.t"][0] == -(2**63) and arrays["s0.frames.n"][0] == 2**63 - 1


def test_a_tensor_that_changes_is_kept_up_to_there_and_said_once() -> None:
    collector = NpzCollector()
    frames = [
        Frame("data", 0, n, tensors={"x": tensor(v)})
        for n, v in enumerate([[[1, 2]], [[1]], [[1]], [[3, 4]]])
    ]
    errors = []
    for frame in frames:
        try:
            collector.add(frame)
        except VoxError as error:
            errors.append(str(error))
    assert errors == [
        "stream 0: tensor 'x' from float32[-1,2] to float32[-1,1]; the .npz holds it up to there"
    ]
    arrays = load(collector)
    assert arrays["s0.x"].tolist() == [[1, 2]] and arrays["s0.x.rows"].tolist() == [1, 0, 0, 0]


def test_npz_memory_is_bounded() -> None:
    collector = NpzCollector(max_bytes=1 << 20)
    seen = Seen(mels(2000), collector)
    assert seen.problems == 1 and "more than 1 MiB" in seen.reported[0]
    assert 0 < load(collector)["s0.mel"].nbytes < 1 << 20


# --- png


def png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_a_picture_has_a_panel_for_each_stream() -> None:
    sizes = []
    for streams in (1, 2):
        image, file = Picture(), io.BytesIO()
        for stream in range(streams):
            for frame in mels(30, stream=stream):
                image.add(frame)
        image.add(Frame("mark", 0, meta={"audio_end": 1280 * 20}))
        image.write(file)
        sizes.append(png_size(file.getvalue()))
    assert sizes[1] == (sizes[0][0], 2 * sizes[0][1])


def test_a_picture_survives_values_that_are_no_numbers() -> None:
    image, file = Picture(), io.BytesIO()
    values = np.full((8, 16), np.nan, np.float32)
    values[0, 0] = np.inf
    image.add(Frame("open", 0, meta={"source": "$\\frac 日本 \x1b"}))
    image.add(Frame("data", 0, 0, tensors={"mel": Tensor.of(values)}))
    image.write(file)
    assert png_size(file.getvalue())[0] > 1000


def drawn(frames: Iterable[Frame]) -> tuple[int, int]:
    image, file = Picture(), io.BytesIO()
    assert Seen(frames, image).problems == 0
    image.write(file)
    return png_size(file.getvalue())


def test_a_picture_of_speech_synthesis() -> None:
    states = np.random.default_rng(1).normal(size=(9, 1, 3072)).astype(np.float32)
    rows = [{"hidden": Tensor.of(state), "codes": codes(at % 8)} for at, state in enumerate(states)]
    one = drawn(speech({"codes": row["codes"]} for row in rows))
    assert drawn(speech({"hidden": row["hidden"]} for row in rows)) == one
    assert drawn(speech(rows)) == (one[0], 2 * one[1])


@pytest.mark.parametrize("values", [[0.0], [np.nan] * 3, [np.inf, -np.inf], [3e38, -3e38], [1.0] * 100])
def test_hidden_states_of_any_values_and_width_are_drawn(values: list[float]) -> None:
    drawn(speech([{"hidden": tensor([values])}, {"hidden": bf16([[0x3F80] * len(values)])}]))


@pytest.mark.parametrize(
    "value",
    [codes(), codes(1), codes(65535, acoustic=65535), codes(3, -4, acoustic=-1, dtype=np.int64),
     codes(3, acoustic=0, dtype=np.uint8), Tensor.of(np.full((1, 2), 9, np.int8))],
)  # fmt: skip
def test_codes_of_any_values_and_type_are_drawn(value: Tensor) -> None:
    drawn(speech([{"codes": value}]))


def test_hidden_states_are_pooled_as_power() -> None:
    panel = HiddenPanel()
    values = np.random.default_rng(1).normal(size=(10, 100)).astype(np.float32)
    panel.add(Tensor.of(values[:3]))
    panel.add(Tensor.of(values[3:]))
    assert panel._columns is not None
    edges = [band * 100 // 64 for band in range(65)]
    bands = [np.square(values[:, a:b]).mean(axis=1) for a, b in pairwise(edges)]
    expected = np.column_stack([*bands, np.square(values).mean(axis=1)])
    np.testing.assert_allclose(panel._columns.image(), expected, rtol=1e-5)


def test_long_codes_are_thinned_and_the_end_is_remembered() -> None:
    panel = CodesPanel()
    n_frames = 2 * COLUMNS * 3
    rows = np.random.default_rng(1).integers(2, 23, (n_frames, 37)).astype(np.uint16)
    rows[-1, 0] = END_AUDIO
    for part in np.split(rows, [1, 5000, 5001]):
        panel.add(Tensor.of(part))
    assert panel._columns is not None and panel._columns.group == 4 and panel._end_row == n_frames - 1
    np.testing.assert_array_equal(panel._columns.image(), rows[::4])


def test_the_frequency_axis_is_that_of_the_filters() -> None:
    assert bin_of(0, 128) == -0.5
    assert bin_of(8000, 128) == pytest.approx(128.5)
    # 1000 Hz is 15 mel of 15 + 27 ln 8 / ln 6.4
    assert bin_of(1000, 128) == pytest.approx(129 * 15 / (15 + 27 * np.log(8) / np.log(6.4)) - 0.5)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("mel", tensor([[1.0]]), tensor([1])),
        ("mel", tensor([[1.0]]), tensor([[1]], np.int32)),
        ("mel", tensor([[1.0]]), Tensor.of(np.zeros((1, 5000), np.float32))),
        ("mel", tensor([[1.0]]), tensor([[1, 2]])),
        ("hidden", tensor([[1.0]]), tensor([[1, 2]])),
        ("hidden", tensor([[1.0]]), tensor([[1]], np.int32)),
        ("hidden", tensor([[1.0]]), Tensor.of(np.zeros((1, 70000), np.float32))),
        ("codes", codes(3), tensor([[3, 4]], np.uint16)),
        ("codes", codes(3), tensor([[3.0, 4.0]])),
        ("codes", codes(3), Tensor.of(np.zeros((1, 5000), np.uint16))),
    ],
)
def test_what_cannot_be_drawn_is_left_out_and_said_once(name: str, good: Tensor, bad: Tensor) -> None:
    image = Picture()
    image.add(Frame("data", 0, tensors={name: good}))
    with pytest.raises(BadInputError, match=rf"stream 0: '{name}' .* the \.png leaves it out"):
        image.add(Frame("data", 0, tensors={name: bad}))
    image.add(Frame("data", 0, tensors={name: bad}))
    image.write(io.BytesIO())


def test_more_streams_than_panels() -> None:
    image = Picture()
    for stream in range(picture.MAX_PANELS):
        image.add(Frame("data", stream, 0, 0, POSITION, tensors={"mel": tensor([[1.0]])}))
    with pytest.raises(UnsupportedError, match="more than 8 streams and tensors"):
        image.add(Frame("data", 99, tensors={"mel": tensor([[1.0]])}))
    image.add(Frame("data", 100, tensors={"mel": tensor([[1.0]])}))


def test_nothing_to_draw() -> None:
    with pytest.raises(BadInputError, match="no tensor 'mel' or 'embeds' or 'hidden' or 'codes' came"):
        Picture().write(io.BytesIO())


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
