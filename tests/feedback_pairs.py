"""Both ends of the feedback socket in one process; imported by name, not collected."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.feedback import Answers, Listener, connect
from voxtral_pipes.formats.frame import Frame, encode

WAIT_S = 20
ROW = [7, *range(2, 38)]


class Heard(edge.Log):
    """Keeps the lines instead of printing them."""

    def __init__(self) -> None:
        super().__init__("vx-test", 2)
        self.lines: list[str] = []

    def _line(self, message: str) -> None:
        self.lines.append(message)


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


def saved(path: Path, nonce: str = "0123456789abcdef") -> Frame:
    """Make the `hello` of a stream that names the socket at `path`."""
    return Frame("hello", fields={"fb": {"path": str(path), "nonce": nonce, "proto": 1}})
