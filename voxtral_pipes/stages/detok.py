"""vx-detok: token ids in; text, JSON lines or subtitles out.  Latency: none, but for cues.

Carried for each stream: the bytes of an unfinished code point and, for subtitles, the open cue.  text, srt,
vtt and tsv print streams whole, in the order in which they were opened; what a later one has to say is held
in memory until those before it have ended.  jsonl prints everything at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from voxtral_pipes.errors import BadInputError, VoxError
from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.models.cues import Cue
from voxtral_pipes.models.tokens import TOKEN_MS, Vocabulary, detokenise, finish, time_ms
from voxtral_pipes.models.transcript import Format, NamedVocabulary, Piece, Printer, start
from voxtral_pipes.stages.base import Incoming, tick_rate

DEFAULT_DELAY_TOKENS = 6
_MAX_DELAY_TOKENS = 1 << 20


class TokenStream:
    """The ids of one stream; owns its unfinished code point."""

    def __init__(self, vocabulary: Vocabulary, tick_rate_hz: int, meta: Mapping[str, Any]) -> None:
        delay = meta.get("delay_tokens", DEFAULT_DELAY_TOKENS)
        if type(delay) is not int or not 0 <= delay <= _MAX_DELAY_TOKENS:
            raise BadInputError(
                f"open declares the delay {delay!r:.40}, not a number of tokens ('delay_tokens')"
            )
        self._vocabulary = vocabulary
        self._rate_hz = tick_rate_hz
        self._delay = delay
        self._held = b""
        self._last_ms: int | None = None

    def push(self, frame: Frame) -> Iterator[Piece]:
        """Give one piece for each id of a data frame, specials included."""
        if frame.ids is None:
            raise BadInputError(f"a {frame.kind} frame holds no token ids ('i')")
        count = len(frame.ids)
        for at, (token, logprob) in enumerate(zip(frame.ids, _logprobs(frame, count), strict=False)):
            text, self._held = detokenise(self._vocabulary, self._held, token)
            self._last_ms = self._time(frame, at, count)
            yield Piece(token, text, self._last_ms, logprob)

    def flush(self) -> Iterator[Piece]:
        """Give what is left at the end."""
        text, self._held = finish(self._held), b""
        if text:
            yield Piece(None, text, self._last_ms)

    def _time(self, frame: Frame, at: int, count: int) -> int | None:
        if frame.tick is None or frame.ticks == 0:
            return None
        ticks = frame.ticks if frame.ticks is not None else count * TOKEN_MS * self._rate_hz // 1000
        return time_ms(frame.tick + at * ticks // count, self._rate_hz, self._delay)


def _logprobs(frame: Frame, count: int) -> Iterable[float | None]:
    tensor = frame.tensors.get("logprob")
    if tensor is None:
        return repeat(None)
    if tensor.dtype != "f32" or tensor.shape != (count,):
        raise BadInputError(
            f"'logprob' is {tensor.dtype} {list(tensor.shape)}, not f32 [{count}], one for each id"
        )
    return struct.unpack(f"<{count}f", tensor.data)


@dataclass(slots=True, eq=False)
class _Open:
    """One stream that has not been printed whole."""

    stream: int
    tokens: TokenStream
    form: Format
    held: list[str | Cue] = field(default_factory=list)
    ended: bool = False


class Detok:
    """Prints the streams of one pipe; `failed` is true once anything went wrong, here or before."""

    name = "vx-detok"
    needs = "i"

    def __init__(
        self, vocabulary: NamedVocabulary, form: str, report: Callable[[str], None] = lambda line: None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self._vocabulary = vocabulary
        self._form = form
        self._report = report
        self._warn = warn
        self._printer = Printer(form)
        self._turns: list[_Open] = []
        self._open: dict[int, _Open] = {}
        self._opened = 0
        self.failed = False

    def run(self, frames: Iterable[Frame]) -> Iterator[str]:
        """Yield the output, one string for each token or cue, so that each can be written at once.

        Raises:
            BadInputError: malformed input, after everything that could be printed was given.
            TruncatedError: the same for input that ends too early.
        """
        incoming = Incoming(frames, self.needs, self.name)
        rate_hz = tick_rate(incoming.hello())
        if head := self._printer.head():
            yield head
        try:
            for frame in incoming.read():
                yield from self._one(frame, rate_hz)
        except VoxError:
            yield from self._close_all()
            raise
        yield from self._close_all()
        self.failed = self.failed or incoming.failed

    def _one(self, frame: Frame, rate_hz: int) -> Iterator[str]:
        if frame.stream is None or frame.raw is not None or frame.kind == "mark":
            return
        try:
            if frame.kind == "open":
                self._begin(frame, rate_hz)
            elif (entry := self._open.get(frame.stream)) is None:
                return  # closed by an error of its own
            elif frame.kind in ("end", "error"):
                yield from self._close(entry)
            else:
                for piece in entry.tokens.push(frame):
                    yield from self._give(entry, entry.form.add(piece))
        except VoxError as error:
            self.failed = True
            self._report(f"stream {frame.stream}: {error}")
            if (entry := self._open.get(frame.stream)) is not None:
                yield from self._close(entry)

    def _begin(self, frame: Frame, rate_hz: int) -> None:
        stream = frame.stream
        assert stream is not None
        tokens = TokenStream(self._vocabulary, rate_hz, frame.meta)
        entry = _Open(stream, tokens, start(self._form, stream, self._vocabulary))
        self._open[stream] = entry
        self._turns.append(entry)
        self._opened += 1
        if self._opened == 2 and self._form in ("srt", "vtt", "tsv"):
            self._warn(f"several streams in one {self._form} output: the times of each begin at 0")

    def _give(self, entry: _Open, items: Iterator[str | Cue]) -> Iterator[str]:
        if self._form == "jsonl" or entry is self._turns[0]:
            yield from map(self._printer.show, items)
        else:
            entry.held.extend(items)

    def _close(self, entry: _Open) -> Iterator[str]:
        """Finish a stream; if it was printing, the next one that is still open comes live."""
        del self._open[entry.stream]
        for piece in entry.tokens.flush():
            yield from self._give(entry, entry.form.add(piece))
        yield from self._give(entry, entry.form.end())
        entry.ended = True
        if entry is not self._turns[0] and not entry.held:
            self._turns.remove(entry)  # endless short streams behind a long one must not pile up
        while self._turns and self._turns[0].ended:
            self._turns.pop(0)
            if self._turns:
                yield from map(self._printer.show, self._turns[0].held)
                self._turns[0].held.clear()

    def _close_all(self) -> Iterator[str]:
        for entry in list(self._open.values()):
            yield from self._close(entry)
