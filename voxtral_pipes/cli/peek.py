"""vx-peek: frames or a WAV on stdin, what they are on stdout.  Latency: none; of a WAV, a second."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_general
from voxtral_pipes.errors import VoxError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from io import BufferedReader
    from typing import Any

    from voxtral_pipes.formats.frame import Frame
    from voxtral_pipes.models.collect import NpzCollector, SamplesCollector
    from voxtral_pipes.models.picture import Picture
    from voxtral_pipes.models.waveform import Waveform

    _Collected = NpzCollector | SamplesCollector | Picture | Waveform

STDERR = 2
READ_BYTES = 1 << 16

DESCRIPTION = """\
Show what flows on a pipe between two commands, or behind the last one of speech synthesis.

input   frames of any kind, or a WAV
output  one line per frame: kind, stream, number, start tick, tensors with shape, dtype and the
        least, mean and greatest of their finite values (of codes: the semantic ones, and the
        range of the acoustic ones), token ids, metadata
        of a WAV: its format, and one line per second: start, peak and RMS level, clipped samples

A stream that is malformed or truncated, or that carries an error, is shown as far as it can be
read; what is wrong is said on stderr, and the exit status is 1. A WAV shorter than it declares is
a warning."""


def parser() -> Parser:
    """Describe the command line."""
    result = Parser(
        "vx-peek", DESCRIPTION, "arecord | vx-mel | vx-peek --pass | vx-encode | vx-decode | vx-detok"
    )  # fmt: skip
    group = result.add_argument_group("output options")
    group.add_argument("--jsonl", action="store_true", help="print JSON objects instead of lines")
    group.add_argument(
        "--pass", dest="copy", action="store_true",
        help="copy the input to stdout, byte for byte and at once, and report on stderr",
    )  # fmt: skip
    group.add_argument(
        "--npz", metavar="FILE",
        help="save as numpy arrays the tensors of each stream and name, joined (sS.NAME), the start ticks "
        "(sS.frames.t) and the token ids (sS.frames.ids), or the samples of a WAV (samples, rate_hz); at most "
        "1 GiB in memory",
    )  # fmt: skip
    group.add_argument(
        "--png", metavar="FILE",
        help="draw mel spectrograms, embeddings, hidden states and codes, a panel for each of the first 8, or the "
        "waveform and spectrogram of a WAV; long ones are averaged or thinned to fit (needs matplotlib)",
    )  # fmt: skip
    add_general(result)
    return result


def main() -> int:
    """Run the command; return its exit status."""
    return edge.run(parser(), _work)


class _Tap:
    """Frames' byte source: stdin from its first bytes on, which have been read to tell what it is.

    It keeps what was read since `take`, so that it can be passed on unchanged.
    """

    def __init__(self, head: bytes, source: BufferedReader, *, keep: bool) -> None:
        self._head = head
        self._source = source
        self._keep = keep
        self._read: list[bytes] = []

    def read(self, size: int, /) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        if len(data) < size:
            data += self._source.read(size - len(data))
        if self._keep:
            self._read.append(data)
        return data

    def take(self) -> bytes:
        data = b"".join(self._read)
        self._read.clear()
        return data


class _Report:
    """Where the lines go: to stdout, or to stderr if stdout is a copy of the input."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.copy: bool = args.copy
        self._json: bool = args.jsonl
        self._output = edge.Output(binary=args.copy, force=args.force)

    def show(self, shown: dict[str, Any], as_line: Callable[[dict[str, Any]], str]) -> None:
        from voxtral_pipes.stages.peek import as_json

        line = ((as_json(shown) if self._json else as_line(shown)) + "\n").encode()
        if not self.copy:
            self._output.write(line)
            return
        with contextlib.suppress(OSError):  # the copy on stdout goes on without the report
            os.write(STDERR, line)

    def pass_on(self, data: bytes) -> None:
        """Write a piece of the copy; nothing without --pass."""
        if self.copy:
            self._output.write(data)


def _work(args: argparse.Namespace, log: edge.Log) -> int:
    from voxtral_pipes.formats.frame import WAV_MAGIC

    source = edge.open_stdin()
    report = _Report(args)
    if args.png:
        from voxtral_pipes.models.picture import check_matplotlib

        check_matplotlib()
    head = source.read(len(WAV_MAGIC[0]))
    watch = _watch_wav if head in WAV_MAGIC else _watch_frames
    return watch(args, log, head, source, report)


def _watch_frames(
    args: argparse.Namespace, log: edge.Log, head: bytes, source: BufferedReader, report: _Report
) -> int:
    from voxtral_pipes.formats.frame import FrameReader
    from voxtral_pipes.stages.peek import Peek, as_line, describe

    tap = _Tap(head, source, keep=report.copy)
    files: list[tuple[str, NpzCollector | Picture]] = []
    if args.npz:
        from voxtral_pipes.models.collect import NpzCollector

        files.append((args.npz, NpzCollector()))
    if args.png:
        from voxtral_pipes.models.picture import Picture

        files.append((args.png, Picture()))

    def show(frame: Frame, tick_rate_hz: int | None) -> None:
        report.pass_on(tap.take())  # before any work of ours, which the next command should not wait for
        report.show(describe(frame, tick_rate_hz), as_line)

    peek = Peek(show, log.error, [collector for _, collector in files])
    try:
        peek.run(FrameReader(tap))
        report.pass_on(tap.take())  # of a frame that could not be read
        _pass_rest(source, report)
    finally:  # what was collected is kept although the next command may have gone away
        saved = _save(files, log)
    return 0 if saved and not peek.problems else 1


def _watch_wav(
    args: argparse.Namespace, log: edge.Log, head: bytes, source: BufferedReader, report: _Report
) -> int:
    from voxtral_pipes.stages.peek_wav import WavPeek, as_line

    files: list[tuple[str, SamplesCollector | Waveform]] = []
    if args.npz:
        from voxtral_pipes.models.collect import SamplesCollector

        files.append((args.npz, SamplesCollector()))
    if args.png:
        from voxtral_pipes.models.waveform import Waveform

        files.append((args.png, Waveform()))

    def show(shown: dict[str, Any]) -> None:
        report.show(shown, as_line)

    peek = WavPeek(show, log.warn, log.error, [collector for _, collector in files])
    try:
        piece = head
        while piece:
            report.pass_on(piece)
            peek.push(piece)
            if peek.done:
                break
            piece = source.read1(READ_BYTES)
        peek.finish()
        _pass_rest(source, report)
    finally:
        saved = _save(files, log)
    return 0 if saved and not peek.problems else 1


def _pass_rest(source: BufferedReader, report: _Report) -> None:
    """Copy what follows the last thing that could be read, as it comes."""
    while report.copy and (rest := source.read1(READ_BYTES)):
        report.pass_on(rest)


def _save(files: Sequence[tuple[str, _Collected]], log: edge.Log) -> bool:
    """Write the files that were asked for; tell whether all could be."""
    from voxtral_pipes.formats.atomic import replace_file

    whole = True
    for name, collected in files:
        try:
            replace_file(Path(name), collected.write)
        except OSError as error:
            log.error(f"cannot write {name}: {error.strerror or error}")
            whole = False
        except VoxError as error:
            log.error(f"{name}: {error}")
            whole = False
    return whole
