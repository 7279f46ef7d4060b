"""Where vx-codec's samples go: all to stdout, or each stream to a file of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from voxtral_pipes.cli import edge
from voxtral_pipes.errors import BadInputError, OutputError
from voxtral_pipes.formats.wav_writer import SoundFormat

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from voxtral_pipes.formats.frame import Frame


class Sink(Protocol):
    """Takes the sound of the streams of one pipe."""

    def open(self, stream: int) -> None:
        """Begin a stream."""

    def audio(self, stream: int, samples: npt.NDArray[np.float32]) -> None:
        """Write samples of a stream at once, float32 [..., n], nominally in [-1, 1]."""

    def end(self, stream: int) -> None:
        """Take it that a stream is whole."""

    def fail(self, stream: int) -> None:
        """Take it that a stream, perhaps one that was never opened, has ended by an error."""

    def finish(self) -> None:
        """Take it that the pipe has ended as it should."""

    def close(self) -> None:
        """Leave everything as it should be found, whatever has happened; calling it again changes nothing."""


def play(frames: Iterable[Frame], sink: Sink) -> None:
    """Send what a stage gives, data frames with the tensor `audio`, into a sink."""
    for frame in frames:
        if frame.stream is None:
            if frame.kind == "end":
                sink.finish()
        elif frame.kind == "open":
            sink.open(frame.stream)
        elif frame.kind == "data":
            sink.audio(frame.stream, frame.tensors["audio"].float32())
        elif frame.kind == "end":
            sink.end(frame.stream)
        elif frame.kind == "error":
            sink.fail(frame.stream)


class SoundOut:
    """All streams on stdout, one after another, as one sound of which the sizes are set at the end if they can be."""

    def __init__(self, form: SoundFormat, output: edge.Output, gap_ms: int = 0) -> None:
        self._form = form
        self._output = output
        self._gap_samples = gap_ms * form.rate_hz // 1000
        self._begun = False
        self._start: int | None = None
        self._speaks = False
        self._gap_due = False

    def open(self, stream: int) -> None:
        """Write the header before the first stream: a player can start."""
        self._begin()
        self._gap_due = self._speaks

    def audio(self, stream: int, samples: npt.NDArray[np.float32]) -> None:
        """Write samples, and silence before the first ones of a later stream."""
        if self._gap_due:
            self._silence()
        self._gap_due = False
        self._speaks = True
        self._output.write(self._form.encode(samples))

    def end(self, stream: int) -> None:
        """Do nothing: all of it is written."""

    def fail(self, stream: int) -> None:
        """Do nothing: what has come is heard."""

    def finish(self) -> None:
        """Write the header of a sound without streams; sizes are left to `close`."""
        self._begin()

    def close(self) -> None:
        """Write the sizes into the header."""
        if self._start is None:
            return
        # Not counted on the way but asked for: a signal may come between a write and its count.
        data_bytes = os.lseek(edge.STDOUT, 0, os.SEEK_CUR) - self._start - len(self._form.header())
        if data_bytes >= 0:
            _patch(edge.STDOUT, self._form, data_bytes, self._start)

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        if edge.is_regular(edge.STDOUT) and not fcntl.fcntl(edge.STDOUT, fcntl.F_GETFL) & os.O_APPEND:
            self._start = os.lseek(edge.STDOUT, 0, os.SEEK_CUR)
            edge.before_death(self.close)
        self._output.write(self._form.header())

    def _silence(self) -> None:
        second = self._form.rate_hz
        for at in range(0, self._gap_samples, second):
            count = min(second, self._gap_samples - at)
            self._output.write(bytes(count * self._form.sample_bytes))


class SoundFiles:
    """A file for each stream, `00000.wav` and so on, which has its name once it is whole.

    No descriptor is kept between calls, so any number of streams can be open.
    """

    def __init__(self, form: SoundFormat, directory: Path, log: edge.Log) -> None:
        self._form = form
        self._directory = directory
        self._log = log
        self._unfinished: dict[int, Path] = {}
        self._written: set[int] = set()
        edge.before_death(self.close)

    def open(self, stream: int) -> None:
        """Make the file of a stream, under a name of its own."""
        if stream in self._written:
            raise BadInputError(f"stream {stream} begins a second time, and {self._path(stream)} is written")
        path = self._path(stream)
        self._unfinished[stream] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._append(stream, self._form.header(), os.O_CREAT | os.O_TRUNC)

    def audio(self, stream: int, samples: npt.NDArray[np.float32]) -> None:
        """Append samples."""
        self._append(stream, self._form.encode(samples))

    def end(self, stream: int) -> None:
        """Set the sizes and give the file its name."""
        path, unfinished = self._path(stream), self._unfinished[stream]
        with _telling(path):
            descriptor = os.open(unfinished, os.O_WRONLY)
            try:
                data_bytes = os.fstat(descriptor).st_size - len(self._form.header())
                _patch(descriptor, self._form, data_bytes)
            finally:
                os.close(descriptor)
            unfinished.replace(path)
        del self._unfinished[stream]
        self._written.add(stream)
        self._log.note(f"{path}: {data_bytes / self._form.sample_bytes / self._form.rate_hz:.2f} s")

    def fail(self, stream: int) -> None:
        """Remove the file."""
        self._drop([stream] if stream in self._unfinished else [])

    def finish(self) -> None:
        """Do nothing: every stream has ended."""

    def close(self) -> None:
        """Remove the files of streams that have not ended."""
        self._drop(list(self._unfinished))

    def _path(self, stream: int) -> Path:
        return self._directory / f"{stream:05d}{self._form.suffix}"

    def _append(self, stream: int, data: bytes, flags: int = os.O_APPEND) -> None:
        with _telling(self._path(stream)):
            descriptor = os.open(self._unfinished[stream], os.O_WRONLY | flags, 0o666)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            finally:
                os.close(descriptor)

    def _drop(self, streams: list[int]) -> None:
        removed = []
        for stream in streams:
            with contextlib.suppress(OSError):
                self._unfinished.pop(stream).unlink()
                removed.append(self._path(stream).name)
        if removed:
            names = ", ".join(removed[:5]) + (", ..." if len(removed) > 5 else "")
            self._log.warn(f"not finished and not kept: {names}" + f" ({len(removed)})" * (len(removed) > 5))


def _patch(descriptor: int, form: SoundFormat, data_bytes: int, start: int = 0) -> None:
    """Write the header again, with sizes; part of a last sample, as a full disk leaves it, is not counted."""
    os.pwrite(descriptor, form.header(data_bytes - data_bytes % form.sample_bytes), start)


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
