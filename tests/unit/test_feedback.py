"""The feedback socket and all its failure modes: who may connect, who may not, and what is left behind (nothing)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from voxtral_pipes.cli import edge, feedback
from voxtral_pipes.cli.feedback import Answers, Listener, connect
from voxtral_pipes.errors import BadInputError, FeedbackError
from voxtral_pipes.formats.frame import Frame, Tensor, encode

WAIT_S = 20
ROW = [7, *range(2, 38)]


class Heard(edge.Log):
    """Keeps the lines instead of printing them."""

    def __init__(self) -> None:
        super().__init__("vx-test", 2)
        self.lines: list[str] = []

    def _line(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets are made: a short path, and nothing may be left in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert list(Path(folder).glob("vx-*")) == []


@pytest.fixture
def listener(home: Path) -> Iterator[Listener]:
    made = Listener(Heard())
    made.listen()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def hung_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close vx-flow's ends, as its process does."""
    made = []

    def remember(self: Answers, connection: socket.socket | None) -> None:
        self._connection = connection
        made.append(self)

    monkeypatch.setattr(Answers, "__init__", remember)
    yield
    for answers in made:
        answers.close()


def hello_of(listener: Listener) -> Frame:
    return Frame("hello", fields={"fb": dict(listener.announcement)})


def path_of(listener: Listener) -> Path:
    return Path(listener.announcement["path"])


def log_of(listener: Listener) -> Heard:
    assert isinstance(listener._log, Heard)
    return listener._log


def joined(listener: Listener) -> Answers:
    """Connect both ends."""
    listener.start()
    answers = connect(hello_of(listener), Heard())
    listener.ready()
    return answers


def raw(listener: Listener, *sent: bytes) -> socket.socket:
    """Connect as anybody could."""
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stranger.connect(str(path_of(listener)))
    for piece in sent:
        with contextlib.suppress(ConnectionError):  # refused before it was heard
            stranger.sendall(piece)
    return stranger


def greeting(nonce: Any) -> bytes:
    return encode(Frame("hello", fields={"v": [1, 0], "nonce": nonce}))


def test_the_socket_is_private_and_announced_in_the_form_of_the_protocol(
    listener: Listener, home: Path
) -> None:
    fb = listener.announcement
    assert sorted(fb) == ["nonce", "path", "proto"]
    assert fb["proto"] == 1
    assert len(fb["nonce"]) == 16 and int(fb["nonce"], 16) >= 0
    path = Path(fb["path"])
    assert path.name == "fb" and path.parent.parent == home and path.parent.name.startswith("vx-")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(os.fsencode(path)) <= 103
    other = Listener(Heard())
    other.listen()
    assert path_of(other) != path and other.announcement["nonce"] != fb["nonce"]
    other.close()
    assert path.exists()


def test_codes_come_back_and_a_stream_can_be_stopped(listener: Listener) -> None:
    answers = joined(listener)
    for frame in range(3):
        answers.send(5, frame, [frame, *ROW[1:]])
        assert listener.take(5, frame) == [frame, *ROW[1:]]
    answers.stop(5)
    assert listener.take(5, 3) is None
    answers.send(6, 0, [65535, 0])
    assert listener.take(6, 0) == [65535, 0]


def test_nothing_is_left_once_both_are_connected(listener: Listener, home: Path) -> None:
    answers = joined(listener)
    assert list(home.iterdir()) == []
    answers.send(0, 0, ROW)
    assert listener.take(0, 0) == ROW


def test_nothing_is_left_when_it_is_closed_unused_twice_or_before_it_listens(home: Path) -> None:
    listener = Listener(Heard())
    listener.close()
    listener.listen()
    assert len(list(home.iterdir())) == 1
    listener.close()
    listener.close()
    assert list(home.iterdir()) == []


def test_nobody_connects(listener: Listener, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "WAIT_S", 0.2)
    listener.start()
    with pytest.raises(FeedbackError, match="vx-backbone needs vx-flow next in the pipe, and none connected"):
        listener.ready()
    assert list(home.iterdir()) == []


def test_there_is_nobody_left_to_wait_for(home: Path) -> None:
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


def saved(path: Path, nonce: str = "0123456789abcdef") -> Frame:
    return Frame("hello", fields={"fb": {"path": str(path), "nonce": nonce, "proto": 1}})


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
def test_a_stale_socket_is_removed_if_it_is_one_of_vx_backbone(ours: bool, home: Path) -> None:
    """A vx-backbone that was killed leaves its socket; a socket of anything else is not touched."""
    folder = home / ("vx-0123456789abcdef" if ours else "agent")
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


@pytest.mark.parametrize("unusable", ["long", "relative", "missing", "file", "bytes", "unset"])
def test_a_folder_that_is_no_place_for_a_socket_is_passed_over(
    unusable: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {
        "long": tmp_path / ("x" * 100),
        "relative": Path("relative"),
        "missing": tmp_path / "missing",
        "file": tmp_path / "file",
        "bytes": Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")),
    }
    (tmp_path / "file").touch()
    for folder in ("long", "relative", "bytes"):
        (tmp_path / folders[folder]).mkdir()
    monkeypatch.chdir(tmp_path)
    if unusable == "unset":
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folders[unusable]))
    listener = Listener(Heard())
    listener.listen()
    assert path_of(listener).parent.parent == home
    answers = joined(listener)
    answers.send(0, 0, ROW)
    assert listener.take(0, 0) == ROW
    listener.close()
    # With TMPDIR unusable as well, /tmp is left.
    monkeypatch.setenv("TMPDIR", str(folders.get(unusable, tmp_path / "no")))
    last = Listener(Heard())
    last.listen()
    assert path_of(last).parent.parent == Path("/tmp")
    last.close()
    assert not path_of(last).parent.exists()


def test_no_place_at_all_is_told_with_every_reason(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    monkeypatch.setattr(feedback, "_MAX_PATH", 20)
    with pytest.raises(FeedbackError) as caught:
        Listener(Heard()).listen()
    told = str(caught.value)
    assert told.startswith("no feedback socket can be made (relative: not an absolute path; ")
    for folder in (home, "/tmp"):
        assert f"{folder}: too long for the address of a socket" in told


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


CHILD = """
import signal, sys, time
from pathlib import Path
from voxtral_pipes.cli import edge
from voxtral_pipes.cli.feedback import Listener
edge._set_signals()
listener = Listener(edge.Log("vx-test"))
edge.before_death(listener.close)
{before}
listener.listen()
listener.start()
print(listener.announcement["path"], flush=True)
time.sleep({wait})
"""


def child(before: str = "", wait: int = WAIT_S) -> subprocess.Popen[str]:
    code = CHILD.format(before=before, wait=wait)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(number: signal.Signals, home: Path) -> None:
    with child() as process:
        assert process.stdout
        path = Path(process.stdout.readline().strip())
        assert path.exists() and path.parent.parent == home
        process.send_signal(number)
        assert process.wait(WAIT_S) == -number
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("moment", ["mkdir", "chmod"])
def test_a_signal_while_the_socket_is_made_leaves_nothing_behind(moment: str, home: Path) -> None:
    before = f"""
act = Path.{moment}
def disturbed(*args, **options):
    act(*args, **options)
    signal.raise_signal(signal.SIGTERM)
Path.{moment} = disturbed
"""
    with child(before) as process:
        assert process.wait(WAIT_S) == -signal.SIGTERM
    assert list(home.iterdir()) == []


def test_one_that_is_killed_is_cleaned_up_by_vx_flow(home: Path) -> None:
    with child() as process:
        assert process.stdout
        path = Path(process.stdout.readline().strip())
        process.kill()
        process.wait(WAIT_S)
    assert path.exists()
    log = Heard()
    connect(saved(path), log)
    assert list(home.iterdir()) == [] and "is gone" in log.lines[0]


def test_many_pairs_at_once_do_not_meet(home: Path) -> None:
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
