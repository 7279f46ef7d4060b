"""The loop round a stage: what it makes of streams, marks and errors, and how what is sent is numbered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adding import END, Adding, brief, data, drive, hello

from voxtral_pipes import __version__
from voxtral_pipes.errors import BadInputError, VoxError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.stages.base import Drive, Outgoing, Output, is_fatal

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
