"""vx-peek: frames on stdin, what they are on stdout.  Latency: none."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_general
from voxtral_pipes.errors import VoxError

if TYPE_CHECKING:
    from voxtral_pipes.formats.frame import ByteSource, Frame
    from voxtral_pipes.models.collect import NpzCollector
    from voxtral_pipes.models.picture import Picture

STDERR = 2
COPY_BYTES = 1 << 20

DESCRIPTION = """\
Show what flows on a pipe between two commands.

input   frames of any kind
output  one line per frame: kind, stream, number, start tick, tensors with shape, dtype and the
        least, mean and greatest of their finite values, token ids, metadata

A stream that is malformed or truncated, or that carries an error, is shown as far as it can be
read; what is wrong is said on stderr, and the exit status is 1."""


def parser() -> Parser:
    """Describe the command line."""
    result = Parser(
        "vx-peek", DESCRIPTION, "arecord | vx-mel | vx-peek --pass | vx-encode | vx-decode | vx-detok"
    )  # fmt: skip
    group = result.add_argument_group("output options")
    group.add_argument(
        "--jsonl", action="store_true", help="print one JSON object per frame instead of a line"
    )
    group.add_argument(
        "--pass", dest="copy", action="store_true",
        help="copy the input to stdout, byte for byte and each frame at once, and report on stderr",
    )  # fmt: skip
    group.add_argument(
        "--npz", metavar="FILE",
        help="save as numpy arrays the tensors of each stream and name, joined (sS.NAME), the start ticks "
        "(sS.frames.t) and the token ids (sS.frames.ids); at most 1 GiB in memory",
    )  # fmt: skip
    group.add_argument(
        "--png", metavar="FILE",
        help="draw the mel spectrogram, a panel for each of the first 8 streams; long ones are averaged to "
        "fit (needs matplotlib)",
    )  # fmt: skip
    add_general(result)
    return result


def main() -> int:
    """Run the command; return its exit status."""
    return edge.run(parser(), _work)


class _Tap:
    """A byte source that keeps what was read since `take`, so that it can be passed on unchanged."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._read: list[bytes] = []

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size) or b""
        self._read.append(data)
        return data

    def take(self) -> bytes:
        data = b"".join(self._read)
        self._read.clear()
        return data


def _work(args: argparse.Namespace, log: edge.Log) -> int:
    from voxtral_pipes.formats.frame import FrameReader
    from voxtral_pipes.stages.peek import Peek, as_json, as_line, describe

    source = edge.open_stdin()
    output = edge.Output(binary=args.copy, force=args.force)
    files = _files(args)
    tap = _Tap(source) if args.copy else None

    def show(frame: Frame, tick_rate_hz: int | None) -> None:
        if tap is not None:
            output.write(tap.take())  # before any work of ours, which the next command should not wait for
        shown = describe(frame, tick_rate_hz)
        line = (as_json(shown) if args.jsonl else as_line(shown)) + "\n"
        if tap is None:
            output.write(line.encode())
        else:
            _tell(line)

    peek = Peek(show, log.error, [collector for collector, _ in files])
    try:
        peek.run(FrameReader(tap or source))
        if tap is not None:
            output.write(tap.take())  # of a frame that could not be read, and all that follows it
            while rest := source.read(COPY_BYTES):
                output.write(rest)
    finally:  # what was collected is kept although the next command may have gone away
        saved = [_save(collector, path, log) for collector, path in files]
    return 0 if all(saved) and not peek.problems else 1


def _files(args: argparse.Namespace) -> list[tuple[NpzCollector | Picture, Path]]:
    files: list[tuple[NpzCollector | Picture, Path]] = []
    if args.npz:
        from voxtral_pipes.models.collect import NpzCollector

        files.append((NpzCollector(), Path(args.npz)))
    if args.png:
        from voxtral_pipes.models.picture import Picture, check_matplotlib

        check_matplotlib()
        files.append((Picture(), Path(args.png)))
    return files


def _save(collector: NpzCollector | Picture, path: Path, log: edge.Log) -> bool:
    from voxtral_pipes.formats.atomic import replace_file

    try:
        replace_file(path, collector.write)
    except OSError as error:
        log.error(f"cannot write {path}: {error.strerror or error}")
        return False
    except VoxError as error:
        log.error(f"{path}: {error}")
        return False
    return True


def _tell(line: str) -> None:
    """Write a line of the report to stderr; the copy on stdout goes on without it."""
    try:
        os.write(STDERR, line.encode())
    except OSError:
        return
