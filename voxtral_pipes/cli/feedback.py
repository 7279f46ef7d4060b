"""The way back from vx-flow to vx-backbone: a Unix socket beside the pipe (design.md section 5; formats.md 8.3).

vx-backbone listens and announces path and nonce in its hello; vx-flow connects, says the nonce, and answers each
hidden state with its codes, in frames.  No import of numpy or torch: both ends do this before they load anything.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import queue
import secrets
import shutil
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtral_pipes import __version__
from voxtral_pipes.cli.edge import Log
from voxtral_pipes.errors import BadInputError, FeedbackError, TruncatedError
from voxtral_pipes.formats.frame import PROTOCOL, Frame, FrameReader, Tensor, encode

WAIT_S = 10.0
"""For vx-flow to connect: it does so on reading hello, before it imports anything heavy."""
GREETING_S = 2.0
"""For the first frame of whoever connects; after that the next one is looked at."""
MAX_FRAME_BYTES = 1 << 16
PROTO = 1
_PREFIX, _NAME = "vx-", "fb"
_MAX_PATH = 107 if sys.platform == "linux" else 103


class Listener:
    """vx-backbone's end: a socket in a folder of its own, gone as soon as vx-flow is connected.

    `close` may be called at any time, also from a signal handler.
    """

    def __init__(self, log: Log) -> None:
        """Listen.

        Raises:
            FeedbackError: no socket can be made.
        """
        self._log = log
        self._nonce = secrets.token_hex(8)
        self._refused = 0
        self._result: queue.SimpleQueue[Channel | None] = queue.SimpleQueue()
        self._channel: Channel | None = None
        self._folder = ""
        try:
            self._folder = _new_folder()
            self.path = os.path.join(self._folder, _NAME)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(self.path)
            os.chmod(self.path, 0o600)  # the folder is 0700 already
            self._socket.listen(4)
        except OSError as error:
            self.close()
            raise FeedbackError(
                f"no feedback socket can be made in {self._folder or tempfile.gettempdir()}: "
                f"{error.strerror or error}"
            ) from error

    @property
    def announcement(self) -> Mapping[str, Any]:
        """The `fb` of hello."""
        return {"path": self.path, "nonce": self._nonce, "proto": PROTO}

    def start(self) -> None:
        """Begin to wait for vx-flow, in a thread: whoever loads a model meanwhile is not in the way."""
        threading.Thread(target=self._accept, daemon=True).start()

    def ready(self) -> None:
        """Wait for the connection.

        Raises:
            FeedbackError: vx-flow has not come within `WAIT_S` of `start`.
        """
        channel = self._result.get()
        if channel is None:
            strangers = f" ({self._refused} with a wrong nonce were refused)" if self._refused else ""
            raise FeedbackError(
                f"vx-backbone needs vx-flow next in the pipe, and none connected within {WAIT_S:.0f} s{strangers}; "
                "with saved codes instead, use --codes FILE"
            )
        self._channel = channel

    def limit(self, stream: int) -> None:
        """Answer that the number of frames is not known."""

    def take(self, stream: int, frame: int) -> list[int] | None:
        """Wait for the codes of a frame (see `Channel.take`)."""
        assert self._channel is not None
        return self._channel.take(stream, frame)

    def close(self) -> None:
        """Remove the socket and its folder."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        deadline = time.monotonic() + WAIT_S
        channel = None
        with self._socket:
            while channel is None and (left := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left)
                with contextlib.suppress(OSError):
                    connection = self._socket.accept()[0]
                    connection.settimeout(min(GREETING_S, left))
                    channel = self._greet(connection)
        self.close()
        self._result.put(channel)

    def _greet(self, connection: socket.socket) -> Channel | None:
        """Accept who belongs to this user and knows the nonce."""
        if _peer(connection) in (None, os.geteuid()):
            reader = FrameReader(connection.makefile("rb"), MAX_FRAME_BYTES)
            with contextlib.suppress(OSError, BadInputError):
                hello = reader.read()
                said = hello.fields.get("nonce") if hello is not None and hello.kind == "hello" else None
                if isinstance(said, str) and hmac.compare_digest(said.encode(), self._nonce.encode()):
                    connection.settimeout(None)
                    return Channel(connection, reader)
        self._refused += 1
        self._log.note("a connection to the feedback socket without the nonce of hello was refused")
        connection.close()
        return None


class Channel:
    """The accepted connection: codes come out of it."""

    def __init__(self, connection: socket.socket, reader: FrameReader) -> None:
        self._connection = connection
        self._reader = reader

    def take(self, stream: int, frame: int) -> list[int] | None:
        """Wait for the codes of a frame, offset included; None if vx-flow wants no more of this stream.

        Raises:
            BrokenPipeError: vx-flow is gone.
            BadInputError: what came is not these codes.
        """
        try:
            answer = self._reader.read()
        except (TruncatedError, ConnectionError) as error:
            raise BrokenPipeError from error
        if answer is None:
            raise BrokenPipeError
        if answer.stream != stream:
            raise BadInputError(f"vx-flow answered stream {answer.stream} where {stream} was asked")
        if answer.kind == "end":
            return None
        codes = answer.tensors.get("codes")
        if answer.kind != "data" or answer.seq != frame or codes is None or codes.dtype != "u16":
            raise BadInputError(
                f"vx-flow answered {answer.kind} {answer.seq} where the codes of frame {frame} were asked"
            )
        if len(codes.shape) != 1:
            raise BadInputError(f"vx-flow answered codes of the shape {list(codes.shape)}, not one row")
        return list(struct.unpack(f"<{codes.shape[0]}H", codes.data))


class Answers:
    """vx-flow's end.  Once vx-backbone is gone, what is sent goes nowhere: the pipe itself tells of it."""

    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection

    def send(self, stream: int, frame: int, row: Sequence[int]) -> None:
        """Answer one hidden state with its codes."""
        codes = Tensor("u16", (len(row),), struct.pack(f"<{len(row)}H", *row))
        self._write(Frame("data", stream, frame, tensors={"codes": codes}))

    def stop(self, stream: int) -> None:
        """Ask for no more of a stream."""
        self._write(Frame("end", stream=stream))

    def _write(self, frame: Frame) -> None:
        if self._connection is None:
            return
        try:
            self._connection.sendall(encode(frame))
        except OSError:
            self._connection.close()
            self._connection = None


def connect(hello: Frame, log: Log) -> Answers:
    """Connect to the socket that a hello announces; without one, or where it is gone, answers go nowhere.

    Raises:
        BadInputError: the announcement is malformed.
        FeedbackError: the socket belongs to somebody else, or cannot be reached although it is there.
    """
    announced = hello.fields.get("fb")
    if announced is None:
        return Answers(None)
    path, nonce = _parse(announced)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held = os.lstat(path)
        if held.st_uid != os.geteuid() or not stat.S_ISSOCK(held.st_mode):
            raise FeedbackError(
                f"the feedback socket {path} is not a socket of this user: run the whole pipe as one user"
            )
        connection.settimeout(WAIT_S)
        connection.connect(path)
        if _peer(connection) not in (None, os.geteuid()):
            raise FeedbackError(
                f"another user listens at the feedback socket {path}: run the pipe as one user"
            )
        greeting = {"v": list(PROTOCOL), "by": f"vx-flow/{__version__}", "nonce": nonce}
        connection.sendall(encode(Frame("hello", fields=greeting)))
    except (FileNotFoundError, NotADirectoryError, ConnectionError) as error:
        connection.close()
        if isinstance(error, ConnectionRefusedError):
            _remove_stale(path)
        log.warn(f"the feedback socket {path} is gone: taking the input as a saved stream")
        return Answers(None)
    except FeedbackError:
        connection.close()
        raise
    except OSError as error:
        connection.close()
        raise FeedbackError(f"the feedback socket {path}: {error.strerror or error}") from error
    log.note(f"answering vx-backbone at {path}")
    return Answers(connection)


def _parse(announced: Any) -> tuple[str, str]:
    if not isinstance(announced, dict):
        raise BadInputError("'fb' of hello is not a map")
    path, nonce, proto = (announced.get(key) for key in ("path", "nonce", "proto"))
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or not isinstance(nonce, str):
        raise BadInputError("'fb' of hello names no path and nonce")
    if proto != PROTO:
        raise BadInputError(
            f"'fb' of hello speaks version {proto!r:.20} of the feedback protocol, this is {PROTO}"
        )
    return path, nonce


def _new_folder() -> str:
    """Make a fresh folder of mode 0700 whose path leaves room for a socket address."""
    candidates = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]
    for parent in candidates:
        usable = parent.startswith("/") and os.access(parent, os.W_OK | os.X_OK)
        if usable and len(os.fsencode(parent)) + len(f"/{_PREFIX}12345678/{_NAME}") <= _MAX_PATH:
            return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    raise OSError(
        "XDG_RUNTIME_DIR, TMPDIR and /tmp are all missing, closed, or too long for a socket address"
    )


def _peer(connection: socket.socket) -> int | None:
    """Return the user at the other end; None where the system does not say, and the folder's mode must do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def _remove_stale(path: str) -> None:
    """Remove what a vx-backbone that was killed has left; only in a folder such as it makes."""
    folder = Path(path).parent
    if Path(path).name == _NAME and folder.name.startswith(_PREFIX):
        with contextlib.suppress(OSError):
            Path(path).unlink()
            folder.rmdir()
