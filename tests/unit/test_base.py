"""The stage protocol: what a sequence of frames may be, and which models may meet in one pipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from adding import END, Adding, data, drive, hello

from voxtral_pipes.errors import BadInputError, TruncatedError
from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.stages.base import MAX_OPEN_STREAMS, Drive, Incoming, check_models, tick_rate


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


def test_streams_that_errors_have_closed_are_forgotten() -> None:
    """They were counted for ever."""
    error = Frame("error", 0, fields={"code": "failed", "msg": "m", "by": "t", "fatal": False})
    run = Drive(Adding(), [hello(), *(Frame("open", 0), error) * 3, END])
    assert [frame.kind for frame in run.run()] == ["hello", *["open", "error"] * 3, "end"]
    assert run.failed and not run.outgoing._sent


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
