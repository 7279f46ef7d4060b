"""vx-shard: a model file to pieces of it, and back; what it holds, and whether it is whole."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.shard_options import NAME, describe
from voxtral_pipes.errors import BadModelError, NoModelError, UsageError

if TYPE_CHECKING:
    from voxtral_pipes.cli.options import Parser
    from voxtral_pipes.formats.new_files import NewFiles
    from voxtral_pipes.formats.shard_check import Held
    from voxtral_pipes.formats.shard_set import Part

STDERR = 2


def parser() -> Parser:
    """Describe the command line."""
    return describe()


def main() -> int:
    """Run the command; return its exit status."""
    return edge.run(parser(), _work)


def _work(args: argparse.Namespace, log: edge.Log) -> int:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # No tail to be let out: also with a pipe as stdin, Ctrl-C means that these files are not wanted.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    work: Mapping[str, Callable[[argparse.Namespace, edge.Log], None]] = {
        "split": _split, "join": _join, "verify": _verify, "info": _info,
    }  # fmt: skip
    work[args.command](args, log)
    return 0


class _Progress:
    """One line on stderr, ten times a second at most, if that is a terminal."""

    def __init__(self, log: edge.Log, total: int | None) -> None:
        self._on = log.level >= 1 and os.isatty(STDERR)
        self._total = f" of {amount(total)}" if total is not None else ""
        self._done, self._shown_s, self._width = 0, 0.0, 0

    def __call__(self, size: int) -> None:
        self._done += size
        if self._on and time.monotonic() - self._shown_s >= 0.1:
            self._shown_s = time.monotonic()
            self._show(f"{NAME}: {amount(self._done)}{self._total}")

    def end(self) -> None:
        """Take the line away."""
        if self._width:
            self._show("")

    def _show(self, line: str) -> None:
        self._width, blank = len(line), " " * (self._width - len(line))
        try:
            os.write(STDERR, f"\r{line}{blank}\r{line}".encode())
        except OSError:
            self._on = False


def amount(size: int) -> str:
    """Write a number of bytes for reading."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _new_files() -> NewFiles:
    from voxtral_pipes.formats.new_files import NewFiles

    files = NewFiles()
    edge.before_death(files.discard)
    return files


def _split(args: argparse.Namespace, log: edge.Log) -> None:
    log.note(f"--size is {args.size} bytes")
    if args.style == "gguf-split":
        _split_gguf(args, log)
        return
    if args.allow_oversize:
        raise UsageError("--allow-oversize goes with --style gguf-split: raw pieces cut through tensors")
    from voxtral_pipes.formats.shard import split_raw

    name, total, pieces = _stream(args.source)
    progress = _Progress(log, total)
    with _new_files() as files:
        try:
            parts = split_raw(
                files, pieces, name, args.size, Path(args.out), manifest=args.manifest, progress=progress
            )  # fmt: skip
        finally:
            progress.end()
    _told(parts, log)


def _stream(source: str) -> tuple[str, int | None, Iterable[bytes]]:
    """Return the name of the input, its size if that is known, and its bytes."""
    from voxtral_pipes.formats.pieces import PIECE_BYTES, Pieces

    if source == "-":
        edge.open_stdin()  # says what is wrong with a terminal
        return "stdin", None, iter(lambda: edge.read_waiting(edge.STDIN, PIECE_BYTES), b"")
    path = Path(source)
    if not path.exists():
        raise NoModelError(f"there is no file {path}")
    if path.is_dir():
        raise BadModelError(f"{path} is a directory: name a file to be cut")
    if path.is_file():
        whole = Pieces([path])
        return path.name, whole.size, whole.stream()
    return path.name, None, _read(path, PIECE_BYTES)


def _read(path: Path, step: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(step):
            yield piece


def _split_gguf(args: argparse.Namespace, log: edge.Log) -> None:
    from voxtral_pipes.formats.gguf_table import GgufTable
    from voxtral_pipes.formats.pieces import Pieces
    from voxtral_pipes.formats.shard import plan, split_gguf

    if args.source == "-":
        raise UsageError("--style gguf-split needs a file: a pipe can only be cut into raw pieces")
    source = Path(args.source)
    table = GgufTable(Pieces([source]))
    parts = plan(table, args.size, allow_oversize=args.allow_oversize)
    progress = _Progress(log, table.source.size)
    with _new_files() as files:
        try:
            written = split_gguf(
                files, table, _prefix(args.out, source), parts, manifest=args.manifest, progress=progress
            )  # fmt: skip
        finally:
            progress.end()
    _told(written, log)


def _prefix(out: str, source: Path) -> Path:
    """Return what the names of the parts begin with; in a directory, the name of the file."""
    if out.endswith("/") or Path(out).is_dir():
        return Path(out) / source.name.removesuffix(".gguf")
    return Path(out.removesuffix(".gguf"))


def _told(parts: list[Part], log: edge.Log) -> None:
    for part in parts:
        log.note(f"{part.name}: {part.size} bytes")


def _join(args: argparse.Namespace, log: edge.Log) -> None:
    from voxtral_pipes.formats.new_files import refuse_existing
    from voxtral_pipes.formats.shard_check import check_complete
    from voxtral_pipes.formats.shard_join import join_bytes, write_new
    from voxtral_pipes.formats.shard_set import find_shards

    output = edge.Output(binary=True, force=args.force) if args.out == "-" else None
    out = Path(args.out)
    if output is None:
        refuse_existing(out)
    if not args.source.exists():
        raise NoModelError(f"there is nothing at {args.source}")
    shards = find_shards(args.source)
    if shards is None:
        raise BadModelError(f"{args.source} holds no pieces: shard-*, or NAME-00001-of-0000N.gguf")
    if not check_complete(shards):
        log.warn(
            "there is no manifest, and this is no model: whether the last piece is missing cannot be told"
        )
    log.note(
        f"{len(shards.paths)} pieces, {shards.style}, {'with' if shards.manifest else 'without'} a manifest"
    )
    size, pieces = join_bytes(shards)
    if shards.manifest and size != shards.manifest.size:
        log.warn(
            f"the file was one of {shards.manifest.size} bytes and is now of {size}: holes between its tensors and "
            "padding behind the last are not made again"
        )
    progress = _Progress(log, size)
    try:
        if output is None:
            with _new_files() as files:
                write_new(files, out, _watched(pieces, progress))
        else:
            for piece in _watched(pieces, progress):
                output.write(piece)
    finally:
        progress.end()
    log.note(f"{args.out}: {size} bytes")


def _watched(pieces: Iterable[bytes], progress: _Progress) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        progress(len(piece))


def _verify(args: argparse.Namespace, log: edge.Log) -> None:
    from voxtral_pipes.formats.shard_check import check_finite, look, sums

    held = look(args.source)
    for table in held.tables:
        table.check_contiguous()
    output = edge.Output(binary=False)
    if args.deep:
        progress = _Progress(log, 2 * held.size)
        try:
            lines = [f"{value}  {_printable(path.name)}\n" for path, value in sums(held, progress)]
            looked = check_finite(held, progress)
        finally:
            progress.end()
        output.write("".join(lines).encode())
        log.note(f"{looked} tensors of {len(held.tensors)} hold finite values only")
    if held.shards and held.shards.style == "raw" and not held.manifest:
        log.note("without a manifest, the order of the pieces is known by their names only")
    if held.format is None:
        log.warn(
            "this is no model"
            + ("" if held.manifest else ": names and sizes have been checked, nothing else")
        )
    output.write(f"{_printable(str(args.source))}: complete: {_summary(held)}\n".encode())


def _summary(held: Held) -> str:
    pieces = f"{len(held.paths)} files" if len(held.paths) > 1 else "1 file"
    what = f"{held.family}, {len(held.tensors)} tensors, " if held.format else ""
    sums_there = ", manifest" if held.manifest else ""
    return f"{what}{held.size} bytes, {held.form}, {pieces}{sums_there}"


def _info(args: argparse.Namespace, log: edge.Log) -> None:
    from voxtral_pipes.formats.shard_check import look

    held = look(args.source)
    lines = _json(held, args) if args.json else _lines(held, args)
    output = edge.Output(binary=False)
    for line in lines:
        output.write(line.encode() + b"\n")


def _json(held: Held, args: argparse.Namespace) -> Iterator[str]:
    described: dict[str, Any] = {
        "family": held.family, "format": held.format, "form": held.form, "size": held.size,
        "tensors": len(held.tensors),
        "types": {kind: {"tensors": count, "bytes": size} for kind, (count, size) in held.types.items()},
        "files": [{"name": path.name, "size": path.stat().st_size} for path in held.paths],
        "manifest": held.manifest is not None,
        "metadata": {key: _finite(value) for key, value in held.metadata.items()},
    }  # fmt: skip
    if args.tensors:
        described["table"] = [
            {"name": tensor.name, "type": tensor.type, "shape": tensor.shape, "bytes": tensor.nbytes}
            for tensor in held.tensors
        ]
    yield json.dumps(described, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return what JSON can hold: NaN and infinity are no numbers there."""
    return str(value) if isinstance(value, float) and not abs(value) < float("inf") else value


def _lines(held: Held, args: argparse.Namespace) -> Iterator[str]:
    yield f"family    {held.family}"
    yield f"format    {held.format or 'unknown'}"
    yield f"form      {held.form}"
    yield f"size      {held.size} ({amount(held.size)})"
    yield f"manifest  {'yes' if held.manifest else 'no'}"
    yield f"tensors   {len(held.tensors)}"
    for kind, (count, size) in held.types.items():
        yield f"type      {kind} {count} tensors {size} bytes"
    for path in held.paths:
        yield f"file      {_printable(path.name)} {path.stat().st_size}"
    for key, value in held.metadata.items():
        yield f"metadata  {_printable(f'{key} = {value}' if value is not None else f'{key} ...')}"
    if args.tensors:
        for tensor in held.tensors:
            shape = "x".join(map(str, tensor.shape))
            yield f"tensor    {_printable(tensor.name)} {tensor.type} {shape} {tensor.nbytes}"


def _printable(text: str) -> str:
    """Keep what comes from outside on its line."""
    return "".join(c if c.isprintable() else "?" for c in text).encode(errors="replace").decode()
