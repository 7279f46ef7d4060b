"""The stage protocol: what a sequence of frames may be, and what the loop around a stage makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from voxtral_pipes import __version__
from voxtral_pipes.errors import BadInputError, TruncatedError, VoxError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.stages.base import (
    MAX_OPEN_STREAMS,
    Drive,
    Hello,
    Incoming,
    Outgoing,
    Output,
    Stage,
    Stream,
    check_models,
    is_fatal,
    tick_rate,
)

END = Frame("end")


def hello(**fields: Any) -> Frame:
    meta = fields.pop("meta", {})
    form = {"v": [1, 0], "by": "vx-before/9", "chain": ["vx-before"], "out": {"i": {}}, "tb": 16000}
    return Frame("hello", meta=meta, fields=form | fields)


def data(stream: int, seq: int | None, *ids: int) -> Frame:
    return Frame("data", stream, seq, tick=0, ticks=0, ids=list(ids))


class Adder:
    """Adds up ids: one output per pair, the odd one out at the end; 99 ends the stream, 13 breaks it."""

    def __init__(self, start: int, marks: list[Mapping[str, Any]]) -> None:
        self.done = False
        self._held: list[int] = []
        self._sum = start
        self._marks = marks

    def push(self, frame: Frame) -> Iterator[Output]:
        for token in frame.ids or []:
            if token == 13:
                raise BadInputError("13 is not a number here")
            if token == 99:
                self.done = True
                return
            self._held.append(token)
            if len(self._held) == 2:
                yield self._output()

    def mark(self, meta: Mapping[str, Any]) -> None:
        if meta.get("bad"):
            raise BadInputError("this mark is refused")
        self._marks.append(meta)

    def flush(self) -> Iterator[Output]:
        if self._sum == 666:
            raise VoxError("cannot finish")
        if self._held:
            yield self._output()

    def _output(self) -> Output:
        self._sum += sum(self._held)
        self._held.clear()
        return Output(0, 1, ids=[self._sum])


class Adding:
    """The stage of `Adder`."""

    name = "vx-add"
    needs = "i"

    def __init__(self, model: Mapping[str, str] | None = None) -> None:
        self.model = model
        self.marks: list[Mapping[str, Any]] = []
        self.opened: list[Mapping[str, Any]] = []

    def hello(self) -> Hello:
        return Hello({"i": {"d": "u32", "h": [-1]}}, self.model, {"note": "sums"})

    def prepare(self) -> None:
        pass

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[Stream, Mapping[str, Any]]:
        if meta.get("refuse"):
            raise BadInputError("this stream is refused")
        self.opened.append(meta)
        return Adder(meta.get("start", 0), self.marks), {**meta, "added": True}


def drive(*frames: Frame, stage: Stage | None = None, first: Frame | None = None) -> list[Frame]:
    return list(Drive(stage or Adding(), [first or hello(), *frames]).run())


def brief(frames: Iterable[Frame]) -> list[tuple[Any, ...]]:
    """Reduce frames to (kind, stream, seq, ids)."""
    return [(f.kind, f.stream, f.seq, f.ids) for f in frames]


def incoming(*frames: Frame) -> list[Frame]:
    reader = Incoming([hello(), *frames], "i", "vx-add")
    reader.hello()
    return list(reader.read())


# --- what the input must be


def test_input_must_begin_with_hello() -> None:
    with pytest.raises(TruncatedError, match="empty"):
        Incoming([], "i", "vx-add").hello()
    with pytest.raises(BadInputError, match="first frame is 'open', not 'hello'"):
        Incoming([Frame("open", 0)], "i", "vx-add").hello()


@pytest.mark.parametrize("version", [None, [], [2, 0], "1", 1, ["1", 0]])
def test_other_protocols_are_refused(version: Any) -> None:
    with pytest.raises(BadInputError, match="protocol"):
        Incoming([hello(v=version)], "i", "vx-add").hello()


def test_newer_minor_versions_are_read() -> None:
    assert Incoming([hello(v=[1, 7])], "i", "vx-add").hello().kind == "hello"


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ({"mel": {}}, "vx-before/9 sends mel"),
        ({}, "sends nothing"),
        (None, "sends nothing"),
        ([3], "sends nothing"),
    ],
)
def test_a_wrong_join_is_told_by_name(out: Any, told: str) -> None:
    with pytest.raises(BadInputError, match="vx-add reads the tensor 'embeds'") as caught:
        Incoming([hello(out=out)], "embeds", "vx-add").hello()
    assert told in str(caught.value)
    assert "check the order of the commands" in str(caught.value)


def test_a_stage_that_needs_ids_says_so() -> None:
    with pytest.raises(BadInputError, match="reads token ids"):
        Incoming([hello(out={"mel": {}})], "i", "vx-add").hello()


def test_well_formed_streams_pass_in_order() -> None:
    frames = [
        Frame("open", 1), data(1, 0), Frame("open", 2), data(2, 0), Frame("mark", 1),
        Frame("text", 1, 1, text="a"), Frame("end", 1, 2), data(2, 1), Frame("end", 2, 2),
        Frame("open", 1), data(1, 0), Frame("end", 1, 1),
    ]  # fmt: skip
    assert incoming(*frames, END) == frames


def test_an_open_is_made_for_data_without_one() -> None:
    assert [f.kind for f in incoming(data(4, 0), Frame("end", 4, 1), END)] == ["open", "data", "end"]


def test_frames_without_numbers_are_counted() -> None:
    assert len(incoming(Frame("open", 0), data(0, None), data(0, 1), Frame("end", 0), END)) == 4


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        ([Frame("open", 0), data(0, 1)], "stream 0: frame 0 is missing, 1 came instead"),
        ([data(3, 0), data(3, 0)], "stream 3: frame 1 is missing, 0 came instead"),
        ([data(3, 0), data(3, 2)], "stream 3: frame 1 is missing, 2 came instead"),
        ([Frame("open", 5), Frame("open", 5)], "stream 5 is opened twice"),
        ([data(5, 0), Frame("open", 5)], "stream 5 is opened twice"),
        ([Frame("end", 6)], "stream 6 ends but was never opened"),
        ([Frame("open", 6), Frame("end", 6), Frame("end", 6)], "stream 6 ends but was never opened"),
        ([data(1, 0), Frame("end", 1, 2)], "stream 1 ends after 1 frames but declares 2"),
        ([hello()], "two outputs were joined"),
        ([Frame("data", ids=[1])], "'data' frame without a stream id"),
        ([Frame("open")], "'open' frame without a stream id"),
        ([Frame("text", text="a")], "'text' frame without a stream id"),
    ],
)
def test_malformed_sequences(frames: list[Frame], told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        incoming(*frames, END)


def test_marks_are_not_counted() -> None:
    frames = [Frame("open", 0), Frame("mark", 0), data(0, 0), Frame("mark", 0), Frame("end", 0, 1)]
    assert incoming(*frames, END) == frames


@pytest.mark.parametrize("frames", [[], [Frame("open", 0)], [Frame("open", 0), Frame("end", 0)]])
def test_input_that_just_stops_is_truncated(frames: list[Frame]) -> None:
    with pytest.raises(TruncatedError, match="died"):
        incoming(*frames)


def test_the_pipe_cannot_end_with_a_stream_open() -> None:
    with pytest.raises(TruncatedError, match="stream 2 still open"):
        incoming(Frame("open", 2), END)


def test_nothing_is_read_after_the_end_of_the_pipe() -> None:
    def source() -> Iterator[Frame]:
        yield hello()
        yield END
        raise AssertionError("read on after the end")

    assert [f.kind for f in Drive(Adding(), source()).run()] == ["hello", "end"]


def test_open_streams_are_bounded() -> None:
    opens = [Frame("open", i) for i in range(MAX_OPEN_STREAMS)]
    ends = [Frame("end", i) for i in range(MAX_OPEN_STREAMS)]
    assert len(incoming(*opens, *ends, *opens, *ends, END)) == 4 * MAX_OPEN_STREAMS
    with pytest.raises(BadInputError, match="streams are open at once"):
        incoming(*opens, Frame("open", MAX_OPEN_STREAMS), END)


@pytest.mark.parametrize("rate", [None, 0, -1, True, 16000.0, "16000", 10**9 + 1])
def test_the_clock_must_be_ticks_per_second(rate: Any) -> None:
    assert tick_rate(hello(tb=24000)) == 24000
    with pytest.raises(BadInputError, match="ticks per second"):
        tick_rate(hello(tb=rate))


# --- models


def test_two_models_in_one_pipe_are_refused() -> None:
    own = {"family": "asr", "fp": "aa"}
    for theirs in ({"family": "tts", "fp": "aa"}, {"family": "asr", "fp": "bb"}):
        with pytest.raises(BadInputError, match="made with another model"):
            check_models(hello(meta={"model": theirs}), own)
        with pytest.raises(BadInputError, match="same -m"):
            drive(END, stage=Adding(own), first=hello(meta={"model": theirs}))


@pytest.mark.parametrize(
    "theirs", [None, "asr", {}, {"family": "asr"}, {"fp": None}, {"family": "asr", "fp": "aa"}]
)
def test_absent_and_equal_fingerprints_are_accepted(theirs: Any) -> None:
    check_models(hello(meta={"model": theirs}), {"family": "asr", "fp": "aa"})
    check_models(hello(meta={"model": theirs}), None)


def test_a_stage_without_a_model_passes_on_the_one_before() -> None:
    model = {"family": "asr", "fp": "aa"}
    assert drive(END, first=hello(meta={"model": model}))[0].meta["model"] == model
    assert "model" not in drive(END)[0].meta
    assert drive(END, stage=Adding(model))[0].meta["model"] == model


# --- the loop


def test_hello_names_the_stage_and_what_it_sends() -> None:
    first = drive(END, first=hello(tb=24000))[0]
    assert first.kind == "hello"
    assert first.fields == {
        "v": [1, 0],
        "by": f"vx-add/{__version__}",
        "chain": ["vx-before", "vx-add"],
        "out": {"i": {"d": "u32", "h": [-1]}},
        "tb": 24000,
    }
    assert first.meta == {"note": "sums"}


def test_one_stream() -> None:
    out = drive(
        Frame("open", 3, meta={"start": 10}), data(3, 0, 1, 2, 3), data(3, 1, 4, 5), Frame("end", 3, 2), END
    )
    assert brief(out[1:]) == [
        ("open", 3, None, None), ("data", 3, 0, [13]), ("data", 3, 1, [20]), ("data", 3, 2, [25]),
        ("end", 3, 3, None), ("end", None, None, None),
    ]  # fmt: skip
    assert out[1].meta == {"start": 10, "added": True}


def test_interleaved_streams_do_not_touch() -> None:
    alone = drive(data(1, 0, 1, 2), data(1, 1, 3), Frame("end", 1), END)
    both = drive(
        data(1, 0, 1, 2), data(2, 0, 50), data(1, 1, 3), data(2, 1, 60), Frame("end", 2), Frame("end", 1), END
    )
    assert [f for f in both if f.stream == 1] == [f for f in alone if f.stream == 1]


def test_the_implicit_open_is_sent_on() -> None:
    stage = Adding()
    assert [f.kind for f in drive(data(0, 0, 1), Frame("end", 0), END, stage=stage)][1] == "open"
    assert stage.opened == [{}]


def test_an_empty_stream_and_an_empty_pipe() -> None:
    assert brief(drive(Frame("open", 0), Frame("end", 0, 0), END))[1:] == [
        ("open", 0, None, None), ("end", 0, 0, None), ("end", None, None, None),
    ]  # fmt: skip
    assert [f.kind for f in drive(END)] == ["hello", "end"]


def test_marks_of_streams_that_are_not_open_are_forwarded() -> None:
    marks = [
        Frame("mark", 0, meta={"at": 1}),
        Frame("mark", 0, meta={"at": 2}),
        Frame("mark", meta={"at": 3}),
    ]
    out = drive(marks[0], data(0, 0, 1), Frame("end", 0), marks[1], marks[2], END)
    assert [f.kind for f in out] == ["hello", "mark", "open", "data", "end", "mark", "mark", "end"]
    assert [f for f in out if f.kind == "mark"] == marks


def test_marks_reach_the_stream_and_go_on_in_order() -> None:
    stage = Adding()
    mark = Frame("mark", 0, tick=5, meta={"audio_end": 5})
    out = drive(data(0, 0, 1, 2), mark, data(0, 1, 3, 4), Frame("end", 0), END, stage=stage)
    assert [f.kind for f in out] == ["hello", "open", "data", "mark", "data", "end", "end"]
    assert out[3] == mark
    assert stage.marks == [{"audio_end": 5}]


def test_marks_of_the_whole_pipe_and_unknown_kinds_go_on_untouched() -> None:
    probe = Frame("mark", meta={"probe": 1})
    later = Frame("later", stream=0, raw=b"\x82\xa1k\xa5later\xa1s\x00")
    nowhere = Frame("later", raw=b"\x81\xa1k\xa5later")
    out = drive(probe, later, nowhere, data(0, 0, 1), later, Frame("end", 0), later, END)
    assert [f for f in out if f.kind in ("mark", "later")] == [probe, later, nowhere, later, later]


def test_a_stream_that_is_done_drops_the_rest() -> None:
    stage = Adding()
    out = drive(
        data(0, 0, 1, 2), data(0, 1, 99), data(0, 2, 3, 4), Frame("mark", 0), data(1, 0, 5, 6),
        Frame("end", 0, 3), Frame("end", 1), END, stage=stage,
    )  # fmt: skip
    assert brief(f for f in out if f.stream == 0) == [
        ("open", 0, None, None), ("data", 0, 0, [3]), ("end", 0, 1, None),
    ]  # fmt: skip
    assert ("data", 1, 0, [11]) in brief(out)
    assert stage.marks == []


def test_a_stream_id_can_be_used_again() -> None:
    out = drive(data(0, 0, 99), Frame("end", 0), data(0, 0, 1, 2), Frame("end", 0), END)
    assert brief(out)[1:] == [
        ("open", 0, None, None), ("end", 0, 0, None), ("open", 0, None, None), ("data", 0, 0, [3]),
        ("end", 0, 1, None), ("end", None, None, None),
    ]  # fmt: skip


# --- errors


def error(stream: int | None = None, **fields: Any) -> Frame:
    return Frame("error", stream, fields={"code": "bad-input", "msg": "broken", "by": "vx-before", **fields})


def test_an_error_in_a_stream_closes_that_stream_only() -> None:
    lines: list[str] = []
    frames = [
        hello(), data(0, 0, 1, 2), data(0, 1, 13), data(1, 0, 5), data(0, 2, 3, 4), data(1, 1, 6),
        Frame("end", 0, 3), Frame("end", 1, 2), END,
    ]  # fmt: skip
    running = Drive(Adding(), frames, lines.append)
    out = list(running.run())
    assert running.failed
    assert lines == ["stream 0: 13 is not a number here"]
    assert brief(f for f in out if f.stream == 0) == [
        ("open", 0, None, None), ("data", 0, 0, [3]), ("error", 0, None, None),
    ]  # fmt: skip
    assert brief(f for f in out if f.stream == 1) == [
        ("open", 1, None, None), ("data", 1, 0, [11]), ("end", 1, 1, None),
    ]  # fmt: skip
    assert out[-1] == END
    told = next(f for f in out if f.kind == "error")
    assert told.fields == {
        "code": "bad-input",
        "msg": "13 is not a number here",
        "by": "vx-add",
        "fatal": False,
    }


def test_a_stream_that_cannot_be_opened_is_an_error_of_that_stream() -> None:
    out = drive(
        Frame("open", 0, meta={"refuse": True}), data(0, 0, 1), Frame("mark", 0), Frame("end", 0, 1),
        data(1, 0, 5, 6), Frame("end", 1), END,
    )  # fmt: skip
    assert [f.kind for f in out if f.stream == 0] == ["error"]
    assert [f.kind for f in out if f.stream == 1] == ["open", "data", "end"]


def test_an_error_in_a_mark_closes_its_stream_only() -> None:
    out = drive(data(0, 0, 1), Frame("mark", 0, meta={"bad": 1}), data(0, 1, 2), Frame("end", 0, 2), END)
    assert [f.kind for f in out] == ["hello", "open", "error", "end"]


def test_an_error_at_the_end_of_a_stream_replaces_the_end() -> None:
    out = drive(Frame("open", 0, meta={"start": 666}), Frame("end", 0), data(0, 0, 1), Frame("end", 0), END)
    assert [f.kind for f in out] == ["hello", "open", "error", "open", "data", "end", "end"]


def test_errors_of_the_frame_sequence_end_the_pipe() -> None:
    running = Drive(Adding(), [hello(), data(0, 0, 1), data(0, 2, 1)])
    with pytest.raises(BadInputError, match="frame 1 is missing"):
        list(running.run())
    assert running.said_hello


def test_a_stream_error_from_upstream_closes_the_stream_and_goes_on() -> None:
    running = Drive(
        Adding(), [hello(), data(0, 0, 1, 2), error(0, fatal=False), data(1, 0, 5, 6), Frame("end", 1), END]
    )
    out = list(running.run())
    assert running.failed
    assert [f.kind for f in out] == ["hello", "open", "data", "error", "open", "data", "end", "end"]
    assert out[3] == error(0, fatal=False)


def test_a_stream_error_from_upstream_frees_the_id() -> None:
    out = drive(data(0, 0, 1), error(0), Frame("open", 0), data(0, 0, 5, 6), Frame("end", 0), END)
    assert brief(out)[-3:] == [("data", 0, 0, [11]), ("end", 0, 1, None), ("end", None, None, None)]


@pytest.mark.parametrize("fatal", [error(), error(0, fatal=True), error(fatal=True)])
def test_a_fatal_error_from_upstream_is_the_last_frame(fatal: Frame) -> None:
    assert is_fatal(fatal)
    running = Drive(Adding(), [hello(), data(0, 0, 1), fatal])
    out = list(running.run())
    assert running.failed
    assert [f.kind for f in out] == ["hello", "open", "error"]


# --- what is sent


def test_outgoing_numbers_each_stream_by_itself() -> None:
    out = Outgoing("vx-add")
    x = Output(-5, 2, tensors={"mel": Tensor.of(np.zeros((1, 2), np.float32))})
    out.open(0, {})
    out.open(1, {})
    assert [out.data(0, x).seq, out.data(1, x).seq, out.data(0, x).seq] == [0, 0, 1]
    sent = out.data(1, x)
    assert (sent.kind, sent.tick, sent.ticks, sent.tensors) == ("data", -5, 2, x.tensors)
    assert out.end(0, {"words": 3}) == Frame("end", 0, 2, meta={"words": 3})
    assert is_fatal(out.error(VoxError("all over")))
    assert not is_fatal(out.error(VoxError("this one"), 1))
    out.open(1, {})
    assert out.end(1).seq == 0
