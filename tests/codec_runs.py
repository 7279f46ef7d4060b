"""vx-codec run on the tiny model: to its end, into a file, or begun and left to go on."""

from __future__ import annotations

import os
import struct
import subprocess
from functools import cache
from pathlib import Path

from code_streams import Codes, one_by_one, pipe, sound, spoken, wire
from preloaded import run_preloaded
from processes import command, environment

Ended = tuple[int, bytes, bytes]
FRAME_BYTES = 3840
HEADER = 44


def start(*options: str | Path, model: Path, **streams: object) -> subprocess.Popen[bytes]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    variables = environment(VX_TTS_MODEL=str(model), VX_DEVICE="cpu")
    return subprocess.Popen(["vx-codec", *map(str, options)], bufsize=0, env=variables, **streams)  # type: ignore[call-overload]


def run(*options: str | Path, model: Path, data: bytes = b"", stdout: int | None = None) -> Ended:
    """Run to the end; return status, stdout and stderr."""
    variables = environment(VX_TTS_MODEL=str(model), VX_DEVICE="cpu")
    return ended(run_preloaded("vx-codec", options, variables, data, stdout))


def refused(*options: str | Path, model: Path, data: bytes = b"") -> Ended:
    """The same, where it ends before it imports torch."""
    return ended(command("vx-codec", *options, data=data, VX_TTS_MODEL=str(model), VX_DEVICE="cpu"))


def ended(done: subprocess.CompletedProcess[bytes]) -> Ended:
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout, done.stderr


def to_file(path: Path, *options: str | Path, model: Path, data: bytes, flags: int = 0) -> tuple[int, bytes]:
    """Run with stdout in a file; return status and stderr."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    try:
        status, _, err = run(*options, model=model, data=data, stdout=descriptor)
    finally:
        os.close(descriptor)
    return status, err


def sizes(data: bytes) -> tuple[int, int]:
    return struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 40)[0]


@cache
def decoded(model: Path, seed: int = 1, n: int = 10) -> bytes:
    """Return the samples of a stream of its own, s16le."""
    status, out, err = run("--format", "raw", model=model, data=spoken(sound(n, seed)))
    assert (status, err) == (0, b"")
    assert len(out) == n * FRAME_BYTES
    return out


def begun(codes: Codes) -> bytes:
    """Serialise a pipe whose one stream goes on."""
    return wire(pipe({0: one_by_one(codes)}, ended=False))
