"""Streams that came side by side, one after another: for an output that can hold one at a time.

The stream that was opened first passes at once; frames of later ones are held until it has ended, joined into few
and in bounded memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.stages.base import Incoming, is_fatal

MAX_HELD_BYTES = 64 << 20
OVERHEAD_BYTES = 1024
"""What a held stream, or a held frame, takes beside its tensor."""
JOINED_BYTES = 1 << 16
"""Held frames are joined up to about this size."""


@dataclass(slots=True, eq=False)
class _Turn:
    """One stream that has not been passed on whole; `frames` is what it has to say when its turn comes."""

    stream: int
    frames: list[Frame] = field(default_factory=list)
    held_bytes: int = 0
    ended: bool = False


class Turns:
    """Reorders the frames of one pipe; `run` yields them whole stream by stream, in the order of `open`.

    Of a held frame only the tensor `needs` is kept, and joined frames have no numbers; numbers are checked here.
    """

    def __init__(self, frames: Iterable[Frame], needs: str, by: str, limit: int = MAX_HELD_BYTES) -> None:
        self._incoming = Incoming(frames, needs, by)
        self._needs = needs
        self._limit = limit
        self._turns: deque[_Turn] = deque()
        self._open: dict[int, _Turn] = {}
        self._held_bytes = 0

    def run(self) -> Iterator[Frame]:
        """Yield a well-formed sequence of frames, hello first.

        Raises:
            BadInputError: malformed input, after everything that had come was passed; or more is held than may be.
            TruncatedError: the same for input that ends too early.
        """
        yield self._incoming.hello()
        try:
            for frame in self._incoming.read():
                if frame.kind == "error" and is_fatal(frame):
                    yield from self._pass_all()
                    yield frame
                    return
                yield from self._one(frame)
        except BadInputError:
            yield from self._pass_all()
            raise
        yield Frame("end")

    def _one(self, frame: Frame) -> Iterator[Frame]:
        if frame.stream is None or frame.raw is not None:
            yield frame
            return
        if frame.kind == "open":
            self._begin(frame.stream)
        turn = self._open.get(frame.stream)
        if turn is None:
            yield frame  # a mark or an error of a stream that is not open
            return
        if frame.kind in ("end", "error"):
            turn.ended = True
            del self._open[frame.stream]
        if turn is self._turns[0]:
            yield replace(frame, seq=None)  # what was held before had no number either
            yield from self._next_turns()
        else:
            self._hold(turn, frame)

    def _begin(self, stream: int) -> None:
        turn = _Turn(stream)
        self._open[stream] = turn
        self._turns.append(turn)

    def _hold(self, turn: _Turn, frame: Frame) -> None:
        if frame.kind == "mark":
            return
        if frame.kind == "end" and len(turn.frames) == 1:
            self._turns.remove(turn)  # endless empty streams behind a long one must not pile up
            self._held_bytes -= turn.held_bytes
            return
        rows = frame.tensors.get(self._needs)
        kept = Frame(frame.kind, frame.stream, tensors={self._needs: rows} if rows else {})
        joined = _join(turn.frames[-1], kept, self._needs) if turn.frames else None
        if joined is None:
            turn.frames.append(kept)
        else:
            turn.frames[-1] = joined
        added = (len(rows.data) if rows else 0) + (OVERHEAD_BYTES if joined is None else 0)
        turn.held_bytes += added
        self._held_bytes += added
        if self._held_bytes > self._limit:
            for other in self._turns:
                other.frames.clear()
            raise BadInputError(
                f"more than {self._limit} bytes of later streams wait for stream {self._turns[0].stream} to end, "
                "and are dropped; --out-dir writes streams side by side"
            )

    def _next_turns(self) -> Iterator[Frame]:
        """Where the first stream has ended, pass what is held of those behind it, up to one that is still open."""
        while self._turns and self._turns[0].ended:
            self._turns.popleft()
            if self._turns:
                turn = self._turns[0]
                yield from turn.frames
                turn.frames.clear()
                self._held_bytes -= turn.held_bytes

    def _pass_all(self) -> Iterator[Frame]:
        """Pass what has come, ended or not."""
        for turn in self._turns:
            yield from turn.frames


def _join(last: Frame, frame: Frame, name: str) -> Frame | None:
    """Return one data frame for two, None where their rows do not fit together or would become too many."""
    if last.kind != "data" or frame.kind != "data":
        return None
    one, two = last.tensors.get(name), frame.tensors.get(name)
    if one is None or two is None or one.dtype != two.dtype or len(one.data) > JOINED_BYTES:
        return None
    if len(one.shape) != 2 or len(two.shape) != 2 or one.shape[1] != two.shape[1]:
        return None
    rows = Tensor(one.dtype, (one.shape[0] + two.shape[0], one.shape[1]), bytes(one.data) + bytes(two.data))
    return replace(last, tensors={name: rows})
