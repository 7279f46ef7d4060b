"""Reading stdin ahead of the work: who writes it need not wait for whom this command writes to.

A thread takes bytes as they come into a bounded buffer.  Everything else, signals above all, stays in the main
thread.  Nothing here imports numpy or torch.
"""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Mapping

from voxtral_pipes.errors import TruncatedError
from voxtral_pipes.formats.frame import FrameReader
from voxtral_pipes.stages.base import Incoming, check_models

MAX_AHEAD_BYTES = 4 << 20
"""About 2^15 frames of codes, three quarters of an hour of speech."""
READ_BYTES = 1 << 16


class ReadAhead:
    """A byte source for `FrameReader`, filled by a thread through `read_some(size)`, which returns b"" at the end.

    The thread begins at once.  It waits while the buffer is full, so `limit` bytes are the most it holds; what
    `read_some` raises comes out of `read`, behind the bytes before it.
    """

    def __init__(self, read_some: Callable[[int], bytes], limit: int = MAX_AHEAD_BYTES) -> None:
        self._read_some = read_some
        self._limit = limit
        self._buffer = bytearray()
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self.taken_bytes = 0
        """What `read` has returned so far."""
        self.most_bytes = 0
        """The most that was ever held."""
        # A daemon: at the end of the command it may be waiting for input that nobody wants any more.
        threading.Thread(target=self._run, name="read-ahead", daemon=True).start()

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end; a signal is handled while this waits."""
        result = bytearray()
        with self._change:
            while len(result) < size:
                self._change.wait_for(lambda: self._buffer or self._ended)
                if not self._buffer:
                    if self._error is not None:
                        raise self._error
                    break
                piece = self._buffer[: size - len(result)]
                del self._buffer[: len(piece)]
                result += piece
                self._change.notify()
            self.taken_bytes += len(result)
        return bytes(result)

    def check_hello(self, needs: str, by: str, model: Mapping[str, str] | None = None) -> None:
        """Refuse input that is not for this command, if so much has come already; nothing is taken.

        Raises:
            BadInputError: it is no frame stream, holds something else, or was made with another model.
        """
        with self._change:
            head, ended = bytes(self._buffer), self._ended
        try:
            first = FrameReader(io.BytesIO(head)).read()
        except TruncatedError:
            if ended and self._error is None:
                raise
            return
        if first is not None:
            check_models(Incoming([first], needs, by).hello(), model)

    def _run(self) -> None:
        # A signal that the system gave to this thread would not wake the main one.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        error = None
        try:
            while data := self._read_some(min(READ_BYTES, self._limit - len(self._buffer))):
                with self._change:
                    self._buffer += data
                    self.most_bytes = max(self.most_bytes, len(self._buffer))
                    self._change.notify()
                    self._change.wait_for(lambda: len(self._buffer) < self._limit)
        except BaseException as raised:
            error = raised
        with self._change:
            self._error, self._ended = error, True
            self._change.notify()
