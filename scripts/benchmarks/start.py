"""How long each command takes to say --help, and to give its first byte (of frames: that of hello), on tiny models."""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks.report import median, show
from voxtral_pipes.config import TTS_FRAME_TICKS, TTS_RATE_HZ
from voxtral_pipes.formats.frame import Frame, FrameReader, Tensor, encode
from voxtral_pipes.stages.base import Hello, Outgoing, Output

COMMANDS = (
    "vx-mel", "vx-encode", "vx-decode", "vx-detok",
    "vx-tokenize", "vx-backbone", "vx-flow", "vx-codec",
    "vx-peek",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Case:
    """A command to start, what to give it, and what of its output to wait for."""

    label: str
    command: list[str]
    data: bytes
    no_cache: bool = False
    """Start with an empty cache each time."""
    to_data: bool = False
    """Wait for the first data frame; else for the first byte."""


def recognition(model: str, tokenizer: str) -> Iterator[Case]:
    """Yield the commands that hear, each alone, on what the one before it sent."""
    silence = b"\0" * 40960
    raw, device = ["vx-mel", "--raw", "s16le:16000:1"], ["-m", model, "--device", "cpu"]
    yield Case("vx-mel", raw, silence)
    mel = run(raw, silence)
    yield Case("vx-encode", ["vx-encode", *device], mel)
    yield Case("vx-decode", ["vx-decode", *device], run(["vx-encode", *device], mel))
    detok = ["vx-detok", "--tokenizer", tokenizer]
    yield Case("vx-detok", detok, one_word(1000 + ord("a")))
    yield Case("vx-detok, no cache", detok, one_word(1000 + ord("a")), no_cache=True)
    yield Case("vx-peek", ["vx-peek"], mel)


def synthesis(model: str, tokenizer: str, codes: Path) -> Iterator[Case]:
    """Yield the commands that speak, each alone; `codes` is a file to write.

    vx-backbone and vx-flow send hello before they import torch, so they are timed to their first frame of speech too.
    """
    tokenize = ["vx-tokenize", "--tokenizer", tokenizer]
    yield Case("vx-tokenize", tokenize, b"a\n")
    yield Case("vx-tokenize --ids", [*tokenize, "--ids"], b"a\n")
    yield Case("vx-tokenize --ids, no cache", [*tokenize, "--ids"], b"a\n", no_cache=True)
    device = ["-m", model, "--device", "cpu"]
    ids = run(["vx-tokenize", "-m", model], b"a\n")
    # Alone, vx-backbone takes its codes from a file; what it waits for otherwise is vx-flow.
    codes.write_bytes(one_frame([2] * 37))
    backbone = ["vx-backbone", *device, "--codes", str(codes)]
    hidden = run(backbone, ids)
    flow = ["vx-flow", *device, "--seed", "1"]
    yield Case("vx-backbone", backbone, ids)
    yield Case("vx-backbone, first frame", backbone, ids, to_data=True)
    yield Case("vx-flow", flow, hidden)
    yield Case("vx-flow, first frame", flow, hidden, to_data=True)
    yield Case("vx-codec", ["vx-codec", *device, "--format", "raw"], codes.read_bytes())


def run(command: list[str], data: bytes) -> bytes:
    """Run a command on `data`."""
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def seconds_to_output(case: Case) -> float:
    """Start a command and return the seconds until it gives what its case waits for."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, **({"XDG_CACHE_HOME": cache} if case.no_cache else {})}
        started = time.perf_counter()
        with subprocess.Popen(
            case.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdin and process.stdout
            process.stdin.write(case.data)
            process.stdin.flush()
            if case.to_data:
                found = any(frame.kind == "data" for frame in FrameReader(process.stdout))
            else:
                found = bool(process.stdout.read(1))
            seconds = time.perf_counter() - started
            process.stdin.close()
            process.stdout.read()
    if not found or process.returncode:
        raise SystemExit(f"{case.label} ended with {process.returncode}")
    return seconds


def one_word(token: int) -> bytes:
    """Make the frames of a stream of one token, as vx-decode sends them."""
    meta = {"delay_tokens": 6, "left_pad_tokens": 32, "prompt_tokens": 39}
    hello = Hello({"i": {"d": "u32", "h": [-1]}})
    return framed(hello, 16000, meta, Output(7680, 1280, ids=[token]))


def one_frame(codes: list[int]) -> bytes:
    """Make the frames of a stream of one row of codes, as vx-flow sends them."""
    row = Tensor("u16", (1, len(codes)), struct.pack(f"<{len(codes)}H", *codes))
    hello = Hello({"codes": {"d": "u16", "h": [-1, len(codes)]}})
    return framed(hello, TTS_RATE_HZ, {}, Output(0, TTS_FRAME_TICKS, {"codes": row}))


def framed(hello: Hello, rate_hz: int, meta: dict[str, int], output: Output) -> bytes:
    """Make the frames of a pipe with one stream of one data frame."""
    outgoing = Outgoing("bench")
    frames = [
        outgoing.hello(hello, rate_hz),
        outgoing.open(0, meta),
        outgoing.data(0, output),
        outgoing.end(0),
        Frame("end"),
    ]
    return b"".join(map(encode, frames))


def main(arguments: list[str]) -> int:
    """Run `scripts/bench start`."""
    parser = argparse.ArgumentParser(prog="scripts/bench start", description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--tokenizer", help="tekken.json to decode with (else that of a tiny random model)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    results: dict[str, dict[str, float]] = {"--help, s": {}, "first byte out, s": {}}
    with tempfile.TemporaryDirectory() as folder:
        hearing, speaking = f"{folder}/asr", f"{folder}/tts"
        for family, model in (("asr", hearing), ("tts", speaking)):
            subprocess.run([ROOT / "scripts/make-random-model", family, "--size", "tiny", model], check=True)
        for name in COMMANDS:
            times = []
            for _ in range(args.runs):
                begun = time.perf_counter()
                subprocess.run([name, "--help"], stdout=subprocess.DEVNULL, check=True)
                times.append(time.perf_counter() - begun)
            results["--help, s"][name] = median(times)
        tokenizer = args.tokenizer or f"{hearing}/tekken.json"
        cases = chain(
            recognition(hearing, tokenizer), synthesis(speaking, tokenizer, Path(folder, "codes.vx"))
        )
        for case in cases:
            results["first byte out, s"][case.label] = median(
                [seconds_to_output(case) for _ in range(args.runs)]
            )
    show(results, args.json)
    return 0
