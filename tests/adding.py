"""A stage that adds up ids, and the frames it is driven with; imported by name, not collected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from voxtral_pipes.errors import BadInputError, VoxError
from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.stages.base import Drive, Hello, Output, Stage, Stream

END = Frame("end")


def hello(**fields: Any) -> Frame:
    meta = fields.pop("meta", {})
    form = {"v": [1, 0], "by": "vx-before/9", "chain": ["vx-before"], "out": {"i": {}}, "tb": 16000}
    return Frame("hello", meta=meta, fields=form | fields)


def data(stream: int, seq: int | None, *ids: int) -> Frame:
    return Frame("data", stream, seq, tick=0, ticks=0, ids=list(ids))


class Adder:
    """Adds up ids: one output per pair, the odd one out at the end; 99 ends the stream, 13 breaks it."""

    def __init__(self, start: int, marks: list[Mapping[str, Any]]) -> None:
        self.done = False
        self._held: list[int] = []
        self._sum = start
        self._marks = marks

    def push(self, frame: Frame) -> Iterator[Output]:
        for token in frame.ids or []:
            if token == 13:
                raise BadInputError("13 is not a number here")
            if token == 99:
                self.done = True
                return
            self._held.append(token)
            if len(self._held) == 2:
                yield self._output()

    def mark(self, meta: Mapping[str, Any]) -> None:
        if meta.get("bad"):
            raise BadInputError("this mark is refused")
        self._marks.append(meta)

    def flush(self) -> Iterator[Output]:
        if self._sum == 666:
            raise VoxError("cannot finish")
        if self._held:
            yield self._output()

    def _output(self) -> Output:
        self._sum += sum(self._held)
        self._held.clear()
        return Output(0, 1, ids=[self._sum])


class Adding:
    """The stage of `Adder`."""

    name = "vx-add"
    needs = "i"

    def __init__(self, model: Mapping[str, str] | None = None) -> None:
        self.model = model
        self.marks: list[Mapping[str, Any]] = []
        self.opened: list[Mapping[str, Any]] = []

    def hello(self) -> Hello:
        return Hello({"i": {"d": "u32", "h": [-1]}}, self.model, {"note": "sums"})

    def prepare(self) -> None:
        pass

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[Stream, Mapping[str, Any]]:
        if meta.get("refuse"):
            raise BadInputError("this stream is refused")
        self.opened.append(meta)
        return Adder(meta.get("start", 0), self.marks), {**meta, "added": True}


def drive(*frames: Frame, stage: Stage | None = None, first: Frame | None = None) -> list[Frame]:
    return list(Drive(stage or Adding(), [first or hello(), *frames]).run())


def brief(frames: Iterable[Frame]) -> list[tuple[Any, ...]]:
    """Reduce frames to (kind, stream, seq, ids)."""
    return [(f.kind, f.stream, f.seq, f.ids) for f in frames]
