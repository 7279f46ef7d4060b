"""The way back from vx-flow to vx-backbone: a Unix socket beside the pipe (design.md section 5; formats.md 8.3).

vx-backbone listens and announces path and nonce in its hello; vx-flow connects, says the nonce, and answers each
hidden state with its codes, in frames.  No import of numpy or torch: both ends do this before they load anything.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import os
import queue
import secrets
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtral_pipes import __version__
from voxtral_pipes.cli.edge import DEADLY, Log
from voxtral_pipes.cli.watch import Watch
from voxtral_pipes.errors import BadInputError, FeedbackError, TruncatedError
from voxtral_pipes.formats.frame import PROTOCOL, Frame, FrameReader, Tensor, encode

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

WAIT_S = 10.0
"""For vx-flow to connect: it does so on reading hello, before it imports anything heavy."""
GREETING_S = 2.0
"""For the whole first frame of whoever connects; after that the next one is looked at."""
LOOK_S = 0.2
"""How often is looked whether anyone is left to wait for."""
MAX_FRAME_BYTES = 1 << 16
PROTO = 1
_GONE = getattr(select, "POLLRDHUP", 0)
"""Asked for where there is such a thing; that both directions are closed is told anyway."""
_PREFIX, _NAME = "vx-", "fb"
_MAX_PATH = 107 if sys.platform == "linux" else 103


class Listener:
    """vx-backbone's end: a socket in a folder of its own, gone as soon as vx-flow is connected.

    `close` may be called at any time, also before `listen` and from a signal handler.
    """

    def __init__(
        self, log: Log, abandoned: Callable[[], bool] = lambda: False, watch: Watch | None = None
    ) -> None:
        """Make nothing yet; `abandoned` tells that there is nobody left who might connect.

        Codes are waited for by `watch`.
        """
        self._log = log
        self._watch = watch or Watch()
        self._abandoned = abandoned
        self._nonce = secrets.token_hex(8)
        self._refused = 0
        self._result: queue.SimpleQueue[Channel | None] = queue.SimpleQueue()
        self._channel: Channel | None = None
        self._folder: Path | None = None
        self._socket: socket.socket | None = None

    def listen(self) -> None:
        """Make the socket.

        Raises:
            FeedbackError: there is no place for it.
        """
        reasons = {}
        for parent in (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp"):
            if not parent:
                continue
            try:
                self._bind(parent)
            except OSError as error:
                self._remove()
                reasons[parent] = error.strerror or str(error)
            else:
                return
        told = "; ".join(f"{parent}: {reason}" for parent, reason in reasons.items())
        raise FeedbackError(f"no feedback socket can be made ({told}); set TMPDIR to a folder of yours")

    def _bind(self, parent: str) -> None:
        # Named here and not by tempfile: `close` must know the folder before it exists, whenever a signal comes.
        folder = Path(parent, f"{_PREFIX}{secrets.token_hex(8)}")
        path = folder / _NAME
        if not folder.is_absolute():
            raise OSError("not an absolute path")
        try:
            if len(str(path).encode()) > _MAX_PATH:
                raise OSError("too long for the address of a socket")
        except UnicodeEncodeError as error:
            raise OSError("not UTF-8, and cannot travel in a frame") from error
        self._folder = folder
        folder.mkdir(mode=0o700)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(path))
            path.chmod(0o600)
            listening.listen(4)
        except OSError:
            listening.close()
            raise
        self._socket = listening

    @property
    def announcement(self) -> Mapping[str, Any]:
        """The `fb` of hello."""
        assert self._folder is not None
        return {"path": str(self._folder / _NAME), "nonce": self._nonce, "proto": PROTO}

    def start(self) -> None:
        """Begin to wait for vx-flow, in a thread: whoever loads a model meanwhile is not in the way."""
        assert self._socket is not None
        listening, self._socket = self._socket, None  # the thread's from now on
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def ready(self) -> None:
        """Wait for the connection.

        Raises:
            FeedbackError: vx-flow has not come within `WAIT_S` of `start`.
            BrokenPipeError: it will not come any more.
        """
        while True:
            try:
                channel = self._result.get(timeout=LOOK_S)
                break
            except queue.Empty:
                if self._abandoned():
                    raise BrokenPipeError from None
        if channel is None:
            strangers = f" ({self._refused} without its nonce were refused)" if self._refused else ""
            raise FeedbackError(
                f"vx-backbone needs vx-flow next in the pipe, and none connected within {WAIT_S:.0f} s{strangers}; "
                "with saved codes instead, use --codes FILE"
            )
        self._channel = channel

    def wait(self, descriptor: int) -> None:
        """Wait until a descriptor can be read, or has ended.

        Raises:
            BrokenPipeError: vx-flow has gone before.
        """
        if self._channel is not None:
            self._channel.wait_beside(descriptor)

    def limit(self, stream: int) -> None:
        """Answer that the number of frames is not known."""

    def take(self, stream: int, frame: int) -> list[int] | None:
        """Wait for the codes of a frame (see `Channel.take`)."""
        assert self._channel is not None
        return self._channel.take(stream, frame)

    def close(self) -> None:
        """Remove the socket and its folder, and hang up."""
        self._remove()
        if self._socket is not None:
            self._socket.close()
        if self._channel is not None:
            self._channel.close()

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self, listening: socket.socket) -> None:
        # A signal that the system gave to this thread would not wake the main one.
        signal.pthread_sigmask(signal.SIG_BLOCK, DEADLY)
        channel = None
        deadline = time.monotonic() + WAIT_S
        try:
            with listening:
                while channel is None and (left := deadline - time.monotonic()) > 0:
                    listening.settimeout(left)
                    with contextlib.suppress(OSError):
                        channel = self._greet(listening.accept()[0], deadline)
        finally:
            self._remove()
            self._result.put(channel)

    def _greet(self, connection: socket.socket, deadline: float) -> Channel | None:
        """Accept who belongs to this user and knows the nonce."""
        if _peer(connection) in (None, os.geteuid()):
            received = _Received(connection, min(deadline, time.monotonic() + GREETING_S))
            reader = FrameReader(io.BufferedReader(received), MAX_FRAME_BYTES)
            with contextlib.suppress(OSError, BadInputError):
                hello = reader.read()
                said = hello.fields.get("nonce") if hello is not None and hello.kind == "hello" else None
                if isinstance(said, str) and hmac.compare_digest(said.encode(), self._nonce.encode()):
                    received.wait_forever(self._watch)
                    return Channel(connection, reader)
        self._refused += 1
        self._log.note("a connection to the feedback socket without the nonce of hello was refused")
        connection.close()
        return None


class _Received(io.RawIOBase):
    """The bytes of a connection, until a deadline: a timeout of the socket would begin anew with every byte."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline: float | None = deadline
        self._watch = Watch()

    def wait_forever(self, watch: Watch) -> None:
        """Forget the deadline; what comes is waited for by `watch`."""
        self._deadline = None
        self._watch = watch
        self._connection.settimeout(None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if self._deadline is not None:
            self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
        self._watch.wait(self._connection.fileno())
        return self._connection.recv_into(buffer)


class Channel:
    """The accepted connection: codes come out of it."""

    def __init__(self, connection: socket.socket, reader: FrameReader) -> None:
        self._connection = connection
        self._reader = reader

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def wait_beside(self, descriptor: int) -> None:
        """Wait until `descriptor` can be read, or has ended.

        Raises:
            BrokenPipeError: vx-flow has gone before.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._connection, _GONE)
        if descriptor not in dict(poll.poll()):
            raise BrokenPipeError

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

    def close(self) -> None:
        """Hang up: for vx-backbone this is the end of vx-flow."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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
            self.close()


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
        held = Path(path).lstat()
        if held.st_uid != os.geteuid() or not stat.S_ISSOCK(held.st_mode):
            raise FeedbackError(
                f"the feedback socket {path} is not a socket of this user: run the whole pipe as one user"
            )
        connection.settimeout(WAIT_S)
        connection.connect(path)
        if _peer(connection) not in (None, os.geteuid()):
            raise FeedbackError(
                f"another user listens at the feedback socket {path}: run the whole pipe as one user"
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
    except PermissionError as error:
        connection.close()
        raise FeedbackError(
            f"the feedback socket {path} is closed to this user: run the whole pipe as one user"
        ) from error
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
