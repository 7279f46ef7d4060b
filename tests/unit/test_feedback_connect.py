"""Who may connect to the feedback socket, who may not, and what vx-flow connects to."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from feedback_pairs import ROW, WAIT_S, Heard, greeting, hello_of, joined, log_of, raw, saved

from voxtral_pipes.cli import feedback
from voxtral_pipes.cli.feedback import Listener, connect
from voxtral_pipes.errors import BadInputError, FeedbackError
from voxtral_pipes.formats.frame import Frame, encode

pytestmark = pytest.mark.usefixtures("hung_up")


@pytest.mark.parametrize(
    "sent",
    [
        [greeting("0123456789abcdef")],
        [greeting("")],
        [greeting("é" * 8)],
        [greeting(7)],
        [greeting(None)],
        [encode(Frame("end"))],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [b"\xc1VX1\xff\xff\xff\x7f"],
        [b"\xc1VX1\x00\x00\x01\x00" + bytes(100)],
        [b"\xc1VX"],
        [],
    ],
    ids=["nonce", "empty", "letters", "number", "none", "end", "http", "huge", "torn", "short", "silent"],
)
@pytest.mark.parametrize("leaves", [True, False])
def test_a_stranger_is_refused_and_vx_flow_behind_it_accepted(
    sent: list[bytes], leaves: bool, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "GREETING_S", 0.1)
    listener.start()
    stranger = raw(listener, *sent)
    if leaves:
        stranger.close()
    answers = connect(hello_of(listener), Heard())
    listener.ready()
    answers.send(0, 0, ROW)
    assert listener.take(0, 0) == ROW
    assert [line for line in log_of(listener).lines if "refused" in line] != []
    if not leaves:
        stranger.settimeout(WAIT_S)
        with contextlib.suppress(ConnectionResetError):  # the same, where something it said was never read
            assert stranger.recv(1) == b""  # hung up on, and told nothing
        stranger.close()


def test_a_stranger_that_trickles_does_not_keep_vx_flow_out(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, the whole of them never."""
    monkeypatch.setattr(feedback, "GREETING_S", 0.3)
    listener.start()
    stranger = raw(listener)
    done = threading.Event()

    def trickle() -> None:
        for byte in b"\xc1VX1\x00\x80\x00\x00" + bytes(1000):
            try:
                stranger.sendall(bytes([byte]))
            except OSError:
                return
            if done.wait(0.05):
                return

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    answers = connect(hello_of(listener), Heard())
    listener.ready()
    answers.send(0, 0, ROW)
    assert listener.take(0, 0) == ROW
    done.set()
    thread.join(WAIT_S)
    stranger.close()


def test_strangers_are_mentioned_where_nobody_else_came(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "WAIT_S", 0.5)
    listener.start()
    strangers = [raw(listener, greeting("0" * 16)) for _ in range(2)]
    with pytest.raises(FeedbackError, match=r"none connected within .*\(2 without its nonce were refused\)"):
        listener.ready()
    for stranger in strangers:
        stranger.close()


def test_another_user_is_refused_even_with_the_nonce(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "WAIT_S", 0.5)
    other = os.geteuid() + 1
    monkeypatch.setattr(feedback, "_peer", lambda connection: other)
    listener.start()
    stranger = raw(listener, greeting(listener.announcement["nonce"]))
    with pytest.raises(FeedbackError, match=r"\(1 without"):
        listener.ready()
    stranger.close()


def test_where_the_system_does_not_name_the_peer_the_nonce_must_do(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "_peer", lambda connection: None)
    answers = joined(listener)
    answers.send(0, 0, ROW)
    assert listener.take(0, 0) == ROW


def test_the_peer_is_known_by_its_user() -> None:
    one, other = socket.socketpair()
    assert feedback._peer(one) in (None, os.geteuid())
    one.close()
    other.close()


def test_a_hello_without_a_socket_is_answered_to_nobody() -> None:
    log = Heard()
    answers = connect(Frame("hello"), log)
    answers.send(0, 0, ROW)
    answers.stop(0)
    assert log.lines == []


@pytest.mark.parametrize("path", ["no/such/fb", "file/fb"])
def test_a_socket_that_is_gone_makes_the_input_a_saved_stream(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = Heard()
    answers = connect(saved(tmp_path / path), log)
    answers.send(0, 0, ROW)
    answers.stop(0)
    assert len(log.lines) == 1 and "is gone: taking the input as a saved stream" in log.lines[0]


@pytest.mark.parametrize("ours", [True, False])
def test_a_stale_socket_is_removed_if_it_is_one_of_vx_backbone(ours: bool, socket_home: Path) -> None:
    """A vx-backbone that was killed leaves its socket; a socket of anything else is not touched."""
    folder = socket_home / ("vx-0123456789abcdef" if ours else "agent")
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(folder / "fb"))
    log = Heard()
    answers = connect(saved(folder / "fb"), log)
    answers.send(0, 0, ROW)
    assert len(log.lines) == 1 and "is gone" in log.lines[0]
    assert folder.exists() is not ours


def test_what_is_no_socket_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "vx-0123"
    folder.mkdir()
    (folder / "fb").write_bytes(b"mine")
    (folder / "link").symlink_to(folder / "fb")
    for path in (folder / "fb", folder, folder / "link"):
        with pytest.raises(FeedbackError, match="is not a socket of this user"):
            connect(saved(path), Heard())
    assert (folder / "fb").read_bytes() == b"mine"


def test_a_socket_of_another_user_is_refused(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    listener.start()
    me = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(FeedbackError, match="not a socket of this user: run the whole pipe as one user"):
            connect(hello_of(listener), Heard())
    with monkeypatch.context() as patch:
        patch.setattr(feedback, "_peer", lambda connection: me + 1)
        with pytest.raises(FeedbackError, match=r"another user listens .*: run the whole pipe as one user"):
            connect(hello_of(listener), Heard())
    with monkeypatch.context() as patch:

        def closed(path: Path) -> os.stat_result:
            raise PermissionError(13, "Permission denied", str(path))

        patch.setattr(Path, "lstat", closed)
        with pytest.raises(FeedbackError, match="closed to this user: run the whole pipe as one user"):
            connect(hello_of(listener), Heard())


@pytest.mark.parametrize(
    ("fb", "said"),
    [
        ("/run/fb", "not a map"),
        ([], "not a map"),
        ({}, "no path and nonce"),
        ({"path": "/a", "proto": 1}, "no path and nonce"),
        ({"path": 7, "nonce": "0", "proto": 1}, "no path and nonce"),
        ({"path": "fb", "nonce": "0", "proto": 1}, "no path and nonce"),
        ({"path": "", "nonce": "0", "proto": 1}, "no path and nonce"),
        ({"path": "/a\0b", "nonce": "0", "proto": 1}, "no path and nonce"),
        ({"path": "/a", "nonce": 5, "proto": 1}, "no path and nonce"),
        ({"path": "/a", "nonce": "0"}, "version None"),
        ({"path": "/a", "nonce": "0", "proto": 2}, "version 2 of the feedback protocol, this is 1"),
        ({"path": "/a", "nonce": "0", "proto": "x" * 10**5}, "version"),
    ],
)
def test_a_malformed_announcement_is_bad_input(fb: Any, said: str) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        connect(Frame("hello", fields={"fb": fb}), Heard())
    assert len(str(caught.value)) < 200


def test_a_path_that_no_socket_can_have_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(FeedbackError, match="too long"):
        connect(saved(tmp_path / ("x" * 4000)), Heard())


def test_many_pairs_at_once_do_not_meet(socket_home: Path) -> None:
    """Each end of each pair says which it is; a listener that waits is not in the way of another."""
    listeners = []
    for _ in range(20):
        listener = Listener(Heard())
        listener.listen()
        listener.start()
        listeners.append(listener)
    results: dict[int, list[int] | None] = {}

    def answer(number: int) -> None:
        connect(hello_of(listeners[number]), Heard()).send(number, 0, [number])

    def take(number: int) -> None:
        listeners[number].ready()
        results[number] = listeners[number].take(number, 0)

    work: list[tuple[Callable[[int], None], int]] = [(act, n) for n in range(20) for act in (take, answer)]
    threads = [threading.Thread(target=act, args=(n,), daemon=True) for act, n in reversed(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    for listener in listeners:
        listener.close()
    assert results == {n: [n] for n in range(20)}
