"""Codes that come back over the feedback socket, and how a pair ends: nobody comes, one dies, one is wrong."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from feedback_pairs import ROW, Heard, greeting, hello_of, joined, raw

from voxtral_pipes.cli import edge, feedback
from voxtral_pipes.cli.feedback import Listener, connect
from voxtral_pipes.errors import BadInputError, FeedbackError
from voxtral_pipes.formats.frame import Frame, Tensor, encode

pytestmark = pytest.mark.usefixtures("hung_up")


def test_codes_come_back_and_a_stream_can_be_stopped(listener: Listener) -> None:
    answers = joined(listener)
    for frame in range(3):
        answers.send(5, frame, [frame, *ROW[1:]])
        assert listener.take(5, frame) == [frame, *ROW[1:]]
    answers.stop(5)
    assert listener.take(5, 3) is None
    answers.send(6, 0, [65535, 0])
    assert listener.take(6, 0) == [65535, 0]


def test_nobody_connects(listener: Listener, socket_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "WAIT_S", 0.2)
    listener.start()
    with pytest.raises(FeedbackError, match="vx-backbone needs vx-flow next in the pipe, and none connected"):
        listener.ready()
    assert list(socket_home.iterdir()) == []


def test_there_is_nobody_left_to_wait_for(socket_home: Path) -> None:
    """The command behind has died before it connected: that is no reason to wait, nor for a line."""
    gone = threading.Event()
    listener = Listener(Heard(), gone.is_set)
    listener.listen()
    listener.start()
    threading.Timer(0.3, gone.set).start()
    begun = time.monotonic()
    with pytest.raises(BrokenPipeError):
        listener.ready()
    assert 0.2 < time.monotonic() - begun < feedback.WAIT_S / 2
    listener.close()


def test_a_reader_that_is_gone_is_noticed_without_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(edge, "STDOUT", writing)
    os.write(writing, b"unread")
    assert not edge.reader_gone()
    os.close(reading)
    assert edge.reader_gone()
    os.close(writing)
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(edge, "STDOUT", ours.fileno())
    assert not edge.reader_gone()
    theirs.close()
    assert edge.reader_gone()
    ours.close()
    for name in ("/dev/null", __file__):
        with Path(name).open("rb") as file:
            monkeypatch.setattr(edge, "STDOUT", file.fileno())
            assert not edge.reader_gone()


@pytest.mark.parametrize("part", [0, 3, 20, -1])
def test_vx_flow_that_dies_breaks_the_pipe(part: int, listener: Listener) -> None:
    """Between two answers and inside one: it is gone, and that is all."""
    listener.start()
    answer = encode(Frame("data", 0, 1, tensors={"codes": Tensor("u16", (1,), b"\x07\0")}))
    peer = raw(listener, greeting(listener.announcement["nonce"]))
    listener.ready()
    peer.sendall(encode(Frame("data", 0, 0, tensors={"codes": Tensor("u16", (1,), b"\x07\0")})))
    peer.sendall(answer[:part])
    peer.close()
    assert listener.take(0, 0) == [7]
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            listener.take(0, 1)


def test_codes_are_waited_for_beyond_the_time_of_the_greeting(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "WAIT_S", 0.3)
    monkeypatch.setattr(feedback, "GREETING_S", 0.2)
    answers = joined(listener)
    threading.Timer(0.6, lambda: answers.send(0, 0, ROW)).start()
    assert listener.take(0, 0) == ROW


def tensor(dtype: str, shape: tuple[int, ...], data: bytes) -> dict[str, Tensor]:
    return {"codes": Tensor(dtype, shape, data)}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Frame("data", 1, 0, tensors=tensor("u16", (1,), b"\0\0")), "answered stream 1 where 0 was asked"),
        (Frame("end", 1), "answered stream 1 where 0"),
        (Frame("end"), "answered stream None where 0"),
        (Frame("data", 0, 1, tensors=tensor("u16", (1,), b"\0\0")), "data 1 where the codes of frame 0"),
        (Frame("data", 0, tensors=tensor("u16", (1,), b"\0\0")), "data None where the codes of frame 0"),
        (Frame("text", 0, 0, text="hi"), "answered text 0 where"),
        (Frame("data", 0, 0), "answered data 0 where the codes"),
        (Frame("data", 0, 0, tensors=tensor("i16", (1,), b"\0\0")), "where the codes of frame 0 were asked"),
        (Frame("data", 0, 0, tensors=tensor("u16", (1, 1), b"\0\0")), r"shape \[1, 1\], not one row"),
        (Frame("data", 0, 0, tensors=tensor("u16", (), b"\0\0")), r"shape \[\], not one row"),
    ],
)
def test_a_wrong_answer_is_a_clear_error(answer: Frame, said: str, listener: Listener) -> None:
    listener.start()
    peer = raw(listener, greeting(listener.announcement["nonce"]), encode(answer))
    listener.ready()
    with pytest.raises(BadInputError, match=said):
        listener.take(0, 0)
    peer.close()


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1", b"\xc1VX1\xff\xff\xff\x7f", b"\xc1VX1\1\0\0\0\xc1"])
def test_bytes_that_are_no_answer_are_a_clear_error(sent: bytes, listener: Listener) -> None:
    listener.start()
    peer = raw(listener, greeting(listener.announcement["nonce"]), sent)
    listener.ready()
    with pytest.raises(BadInputError, match="frame 1 at byte"):
        listener.take(0, 0)
    peer.close()


def test_answers_to_a_vx_backbone_that_is_gone_are_lost_quietly(listener: Listener) -> None:
    log = Heard()
    listener.start()
    answers = connect(hello_of(listener), log)
    listener.ready()
    listener.close()
    for frame in range(3):
        answers.send(0, frame, ROW)
    answers.stop(0)
    assert [line for line in log.lines if "answering vx-backbone" not in line] == []
