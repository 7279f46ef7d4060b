"""What a stage is, and the one loop that drives it (design.md sections 4 and 9).

A stage holds what all streams share (weights, vocabulary); `Stage.open` makes the object of one stream, which
alone owns that stream's state.  Streams never see each other: numbering, `open`, `end`, `error` and the
forwarding of marks and unknown kinds happen here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from voxtral_pipes import __version__
from voxtral_pipes.errors import BadInputError, TruncatedError, VoxError
from voxtral_pipes.formats.frame import PROTOCOL, Frame, Tensor

MAX_OPEN_STREAMS = 1024
"""Streams open at once: each holds a state, so an input that only opens streams must meet a bound."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a stage says about its output before anything else."""

    out: Mapping[str, Mapping[str, Any]]
    """Name -> {"d": dtype, "h": shape with -1 for the free axis}."""
    model: Mapping[str, str] | None = None
    """{family, fp}; absent where the stage has no model."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    ticks_hz: int | None = None
    """The clock that the stage computes times with; None where it passes on those of its input."""
    feedback: Mapping[str, Any] | None = None
    """Where the next command can answer (formats.md section 8.3)."""


@dataclass(frozen=True, slots=True)
class Output:
    """One data frame of a stream, before it has a number."""

    tick: int
    ticks: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    ids: list[int] | None = None

    def frame(self, stream: int | None = None, seq: int | None = None) -> Frame:
        """Make the data frame."""
        return Frame("data", stream, seq, self.tick, self.ticks, tensors=self.tensors, ids=self.ids)


class Stream(Protocol):
    """One stream inside one stage; owns all state that this stream carries between calls."""

    done: bool
    """True once the stream has ended by its own decision; further input is dropped."""

    def push(self, frame: Frame) -> Iterator[Output]:
        """Take one data frame, give what has become computable."""

    def mark(self, meta: Mapping[str, Any]) -> None:
        """Take the metadata of a mark; the mark itself is forwarded by the driver."""

    def flush(self) -> Iterator[Output]:
        """Give what is left at the end of the input; called once."""


class Stage(Protocol):
    """A stage that turns streams of frames into streams of frames."""

    @property
    def name(self) -> str:
        """Name of the command."""

    @property
    def needs(self) -> str:
        """Name of the tensor it reads, or "i" for token ids."""

    def hello(self) -> Hello:
        """Describe the output."""

    def prepare(self) -> None:
        """Get ready for the first stream; called once, when hello is out: the next command starts meanwhile."""

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[Stream, Mapping[str, Any]]:
        """Begin stream `stream`; `meta` is the `m` of its open frame; return it and the `m` to send on."""


class Outgoing:
    """Numbers the frames a stage sends (`n` counts data and text frames of a stream)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sent: dict[int, int] = {}

    def hello(self, hello: Hello, rate_hz: int, chain: Iterable[str] = ()) -> Frame:
        """Make the first frame of the pipe."""
        meta = dict(hello.meta)
        if hello.model is not None:
            meta["model"] = dict(hello.model)
        return Frame(
            "hello",
            meta=meta,
            fields={
                "v": list(PROTOCOL),
                "by": f"{self._name}/{__version__}",
                "chain": [*chain, self._name],
                "out": {name: dict(form) for name, form in hello.out.items()},
                "tb": rate_hz,
                **({"fb": dict(hello.feedback)} if hello.feedback else {}),
            },
        )

    def open(self, stream: int, meta: Mapping[str, Any]) -> Frame:
        """Begin a stream."""
        self._sent[stream] = 0
        return Frame("open", stream=stream, meta=meta)

    def data(self, stream: int, output: Output) -> Frame:
        """Number one data frame."""
        seq = self._sent[stream]
        self._sent[stream] = seq + 1
        return output.frame(stream, seq)

    def end(self, stream: int, meta: Mapping[str, Any] | None = None) -> Frame:
        """End a stream; `n` is the number of data frames it had."""
        return Frame("end", stream=stream, seq=self._sent.pop(stream), meta=meta or {})

    def forget(self, stream: int) -> None:
        """Count a stream no longer: an error has closed it."""
        self._sent.pop(stream, None)

    def error(self, error: VoxError, stream: int | None = None) -> Frame:
        """Make an error frame; one with a stream closes that stream, one without ends the pipe."""
        if stream is not None:
            self.forget(stream)
        fields = {"code": error.code, "msg": str(error), "by": self._name, "fatal": stream is None}
        return Frame("error", stream=stream, fields=fields)


class Incoming:
    """Checks that a sequence of frames is well formed: hello first, numbers without gaps, every stream ended.

    `read` yields the frames after hello in order.  A stream whose first frame is `data` gets an `open` made for
    it, so that what follows sees one form only.
    """

    def __init__(self, frames: Iterable[Frame], needs: str, by: str) -> None:
        self._frames = iter(frames)
        self._needs = needs
        self._by = by
        self._next: dict[int, int] = {}
        self.failed = False
        """True once an error frame has passed."""

    def hello(self) -> Frame:
        """Read the first frame and check that it offers what this stage needs."""
        first = next(self._frames, None)
        if first is None:
            raise TruncatedError("the input is empty: the command before this one wrote nothing")
        if first.kind != "hello":
            raise BadInputError(f"the first frame is {first.kind!r}, not 'hello' (vx-frame(5))")
        version = first.fields.get("v")
        if not isinstance(version, list) or not version or version[0] != PROTOCOL[0]:
            raise BadInputError(f"the input speaks protocol {version!r:.40}, this is version {PROTOCOL[0]}")
        out = first.fields.get("out")
        if not isinstance(out, dict) or self._needs not in out:
            offered = ", ".join(map(str, out)) if isinstance(out, dict) and out else "nothing"
            raise BadInputError(
                f"{self._by} reads {_spoken(self._needs)}, and {first.fields.get('by', 'its input')!s:.60} sends "
                f"{offered:.120}; check the order of the commands"
            )
        return first

    def read(self) -> Iterator[Frame]:
        """Yield the frames after hello.

        Raises:
            BadInputError: a gap in the numbers, a second open, a frame of a stream that never began.
            TruncatedError: the input ends although a stream, or the pipe, has not been ended.
        """
        for frame in self._frames:
            if frame.kind == "hello":
                raise BadInputError("a second 'hello' inside the stream: two outputs were joined on one pipe")
            if frame.kind == "end" and frame.stream is None:
                if self._next:
                    raise TruncatedError(f"the pipe was ended with stream {min(self._next)} still open")
                return
            if frame.kind == "error":
                self.failed = True
                if frame.stream is not None:
                    self._next.pop(frame.stream, None)
                yield frame
                if is_fatal(frame):
                    return
                continue
            if frame.kind in ("data", "text", "open", "end") and frame.stream is None:
                raise BadInputError(f"a {frame.kind!r} frame without a stream id ('s')")
            yield from self._of_stream(frame)
        raise TruncatedError("the input ended without an 'end' frame: the command before this one died")

    def _of_stream(self, frame: Frame) -> Iterator[Frame]:
        stream = frame.stream
        if stream is None:
            yield frame
            return
        if frame.kind == "open":
            if stream in self._next:
                raise BadInputError(f"stream {stream} is opened twice")
            self._begin(stream)
        elif frame.kind in ("data", "text"):
            if stream not in self._next:
                self._begin(stream)
                yield Frame("open", stream=stream)
            self._count(stream, frame)
        elif frame.kind == "end":
            if stream not in self._next:
                raise BadInputError(f"stream {stream} ends but was never opened")
            sent = self._next.pop(stream)
            if frame.seq is not None and frame.seq != sent:
                raise BadInputError(f"stream {stream} ends after {sent} frames but declares {frame.seq}")
        yield frame

    def _begin(self, stream: int) -> None:
        if len(self._next) >= MAX_OPEN_STREAMS:
            raise BadInputError(f"more than {MAX_OPEN_STREAMS} streams are open at once")
        self._next[stream] = 0

    def _count(self, stream: int, frame: Frame) -> None:
        expected = self._next[stream]
        if frame.seq is not None and frame.seq != expected:
            raise BadInputError(f"stream {stream}: frame {expected} is missing, {frame.seq} came instead")
        self._next[stream] = expected + 1


def is_fatal(error: Frame) -> bool:
    """Tell whether an error frame ends the pipe and not just its stream."""
    return error.stream is None or error.fields.get("fatal") is True


def _spoken(needs: str) -> str:
    return "token ids ('i')" if needs == "i" else f"the tensor {needs!r}"


def tick_rate(hello: Frame) -> int:
    """Return the ticks per second that a hello declares."""
    rate = hello.fields.get("tb")
    if not isinstance(rate, int) or isinstance(rate, bool) or not 0 < rate <= 10**9:
        raise BadInputError(f"hello declares the clock {rate!r:.40}, not ticks per second ('tb')")
    return rate


def check_models(upstream: Frame, own: Mapping[str, str] | None) -> None:
    """Refuse two different models in one pipe; an absent fingerprint is accepted (design.md section 4)."""
    theirs = upstream.meta.get("model")
    if own is None or not isinstance(theirs, dict):
        return
    for key in ("family", "fp"):
        if theirs.get(key) is not None and own.get(key) is not None and theirs[key] != own[key]:
            raise BadInputError(
                f"the input was made with another model ({key} {theirs[key]!s:.40}, here {own[key]}); "
                "give every command of the pipe the same -m"
            )


class Drive:
    """Runs a stage over frames: `list(Drive(stage, frames).run())` is a whole stage in a test.

    An error inside one stream closes that stream with an error frame and the others go on; `report` gets the
    line to print, and `ready` is called when the stage is.  Errors of the frame sequence itself propagate to the
    caller, which ends the pipe.
    """

    def __init__(
        self,
        stage: Stage,
        frames: Iterable[Frame],
        report: Callable[[str], None] = lambda line: None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._stage = stage
        self._incoming = Incoming(frames, stage.needs, stage.name)
        self._report = report
        self._ready = ready
        self._streams: dict[int, Stream | None] = {}
        self.outgoing = Outgoing(stage.name)
        self.failed = False
        self.said_hello = False

    def run(self) -> Iterator[Frame]:
        """Yield the output frames, from hello to the end of the pipe."""
        upstream = self._incoming.hello()
        hello = self._stage.hello()
        check_models(upstream, hello.model)
        if hello.model is None and isinstance(upstream.meta.get("model"), dict):
            hello = replace(hello, model=upstream.meta["model"])
        chain = upstream.fields.get("chain")
        rate_hz = tick_rate(upstream)
        if hello.ticks_hz not in (None, rate_hz):
            raise BadInputError(
                f"hello declares {rate_hz} ticks per second ('tb'); here there are {hello.ticks_hz}"
            )
        yield self.outgoing.hello(hello, rate_hz, chain if isinstance(chain, list) else [])
        self.said_hello = True
        self._stage.prepare()
        self._ready()
        for frame in self._incoming.read():
            yield from self._one(frame)
            if frame.kind == "error" and is_fatal(frame):
                return
        yield Frame("end")

    def _one(self, frame: Frame) -> Iterator[Frame]:
        if frame.kind == "error":
            self.failed = True
            if frame.stream is not None:
                self._streams.pop(frame.stream, None)
                self.outgoing.forget(frame.stream)
            yield frame
        elif frame.stream is None or frame.raw is not None:
            yield frame
        else:
            try:
                yield from self._of_stream(frame.stream, frame)
            except VoxError as error:
                self.failed = True
                self._streams[frame.stream] = None
                self._report(f"stream {frame.stream}: {error}")
                yield self.outgoing.error(error, frame.stream)
                if frame.kind == "end":
                    del self._streams[frame.stream]

    def _of_stream(self, sid: int, frame: Frame) -> Iterator[Frame]:
        if frame.kind == "open":
            stream, meta = self._stage.open(sid, frame.meta)
            self._streams[sid] = stream
            yield self.outgoing.open(sid, meta)
            return
        current = self._streams.get(sid)
        if frame.kind == "mark" and sid not in self._streams:
            yield frame  # of a stream that has not begun, or has ended: none of our business
        elif frame.kind == "mark":
            if current is not None:
                current.mark(frame.meta)
                yield frame
        elif frame.kind == "end":
            if current is not None:
                for output in current.flush():
                    yield self.outgoing.data(sid, output)
                yield self.outgoing.end(sid, frame.meta)
            del self._streams[sid]
        elif current is not None:
            for output in current.push(frame):
                yield self.outgoing.data(sid, output)
            if current.done:
                yield self.outgoing.end(sid)
                self._streams[sid] = None
