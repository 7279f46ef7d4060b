"""A command as the real ones are made, whose work each test chooses, and what starts it."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import time
from collections.abc import Iterator

from voxtral_pipes.formats.frame import Frame, FrameReader, encode

WAIT_S = 60

# A command as the real ones are made, whose work each test chooses by an option.
PROBE = """
import os, sys, time
from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_general
from voxtral_pipes.errors import BadInputError
from voxtral_pipes.stages.base import Hello, Output

class Copy:
    done = False
    def push(self, frame):
        if frame.ids == [13]:
            raise BadInputError("13 is\\nunlucky")
        if frame.ids == [14]:
            raise RuntimeError("a bug")
        yield Output(0, 0, ids=frame.ids)
    def mark(self, meta): pass
    def flush(self): return iter(())

class Stage:
    name, needs = "vx-probe", "i"
    def hello(self): return Hello({"i": {"d": "u32", "h": [-1]}})
    def prepare(self): pass
    def open(self, stream, meta): return Copy(), meta

def make():
    if os.environ.get("PROBE_FAILS"):
        raise BadInputError("no such model")
    return Stage()

def work(args, log):
    if args.mode == "raise":
        raise {"os": OSError(2, "No such file", "x.bin"), "bug": ValueError("two\\nlines"),
               "bad": BadInputError("no\\nway"), "memory": MemoryError(),
               "torch": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
               }[args.what]
    if args.mode == "talk":
        log.error("an error"), log.warn("a warning"), log.note("a note")
        return 0
    if args.mode == "act":
        source = edge.open_stdin()
        edge.before_death(lambda: log.error("first act"))
        edge.before_death(lambda: 1 / 0)
        edge.before_death(lambda: (time.sleep(0.3), log.error("last act")))
        print("ready", file=sys.stderr, flush=True)
        data = source.read()
        while args.what == "write":
            edge.Output(binary=False).write(b"x" * 100000)
        return 0
    if args.mode == "open":
        with open(args.what, "wb") as file:
            log.error("said while a file is open")
            edge.Output(binary=False).write(b"shown while a file is open")
        return 0
    if args.mode == "write":
        edge.open_stdin()
        output = edge.Output(binary=True, force=args.force)
        while True:
            output.write(b"x" * 100000)
    if args.mode == "read":
        source = edge.open_stdin()
        print("ready", file=sys.stderr, flush=True)
        data = source.read()
        edge.Output(binary=False).write(b"tail of %d bytes\\n" % len(data))
        return 0
    source, output = edge.open_stdin(), edge.Output(binary=True, force=args.force)
    return edge.filter_frames("vx-probe", Hello({"i": {}}), make, source, output, log)

def parser():
    result = Parser("vx-probe", "Probes the edge.", "vx-probe < x")
    result.add_argument("mode", choices=("raise", "talk", "act", "open", "write", "read", "filter"))
    result.add_argument("what", nargs="?")
    add_general(result)
    return result

sys.exit(edge.run(parser(), work))
"""

HELLO = Frame("hello", fields={"v": [1, 0], "by": "test/0", "chain": [], "out": {"i": {}}, "tb": 16000})


def run(command: list[str], data: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        command,
        input=data,
        capture_output=True,
        timeout=WAIT_S,
        env={**os.environ, **environment},
        check=False,
    )
    assert b"Traceback" not in done.stderr or "-v" in command
    return done


@contextlib.contextmanager
def started(command: list[str], **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    with subprocess.Popen(command, bufsize=0, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def wait_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    assert process.stderr.readline() == b"ready\n"


def still_runs(process: subprocess.Popen[bytes]) -> bool:
    time.sleep(0.2)
    return process.poll() is None


def frames(data: bytes) -> list[Frame]:
    return list(FrameReader(io.BytesIO(data)))


def ids(seq: int, *values: int, stream: int = 0) -> bytes:
    return encode(Frame("data", stream, seq, tick=0, ticks=0, ids=list(values)))


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    outer, inner = pty.openpty()
    try:
        yield inner
    finally:
        os.close(inner)
        os.close(outer)
