"""How long each command takes to say --help, and to give its first byte (of frames: that of hello)."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import median, show
from voxtral_pipes.formats.frame import Frame, encode
from voxtral_pipes.stages.base import Hello, Outgoing, Output

COMMANDS = ("vx-mel", "vx-encode", "vx-decode", "vx-detok", "vx-tokenize", "vx-peek")
ROOT = Path(__file__).resolve().parents[2]


def first_bytes(model: str, tokenizer: str) -> Iterator[tuple[str, list[str], bytes]]:
    """Yield what to start, and what to give it, for each command that is timed to its first byte."""
    silence = b"\0" * 40960
    raw, device = ["vx-mel", "--raw", "s16le:16000:1"], ["-m", model, "--device", "cpu"]
    yield "vx-mel", raw, silence
    mel = subprocess.run(raw, input=silence, stdout=subprocess.PIPE, check=True).stdout
    yield "vx-encode", ["vx-encode", *device], mel
    embeds = subprocess.run(["vx-encode", *device], input=mel, stdout=subprocess.PIPE, check=True).stdout
    yield "vx-decode", ["vx-decode", *device], embeds
    detok = ["vx-detok", "--tokenizer", tokenizer]
    yield "vx-detok", detok, one_word(1000 + ord("a"))
    yield "vx-detok, no cache", detok, one_word(1000 + ord("a"))
    tokenize = ["vx-tokenize", "--tokenizer", tokenizer]
    yield "vx-tokenize", tokenize, b"a\n"
    yield "vx-tokenize --ids", [*tokenize, "--ids"], b"a\n"
    yield "vx-tokenize --ids, no cache", [*tokenize, "--ids"], b"a\n"
    yield "vx-peek", ["vx-peek"], mel


def first_byte(command: list[str], data: bytes, environment: dict[str, str]) -> float:
    """Start a command, write `data`, and return the seconds until its first byte of output."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin and process.stdout
        process.stdin.write(data)
        process.stdin.flush()
        process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdin.close()
        process.stdout.read()
    return seconds


def one_word(token: int) -> bytes:
    """Make the frames of a stream of one token."""
    outgoing = Outgoing("bench")
    frames = [
        outgoing.hello(Hello({"i": {"d": "u32", "h": [-1]}}), 16000),
        outgoing.open(0, {"delay_tokens": 6, "left_pad_tokens": 32, "prompt_tokens": 39}),
        outgoing.data(0, Output(7680, 1280, ids=[token])),
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
        model = f"{folder}/tiny"
        subprocess.run([ROOT / "scripts/make-random-model", "asr", "--size", "tiny", model], check=True)
        for name in COMMANDS:
            times = []
            for _ in range(args.runs):
                begun = time.perf_counter()
                subprocess.run([name, "--help"], stdout=subprocess.DEVNULL, check=True)
                times.append(time.perf_counter() - begun)
            results["--help, s"][name] = median(times)
        tokenizer = args.tokenizer or f"{model}/tekken.json"
        for label, command, data in first_bytes(model, tokenizer):
            times = []
            for _ in range(args.runs):
                with tempfile.TemporaryDirectory() as cache:
                    fresh = {"XDG_CACHE_HOME": cache} if label.endswith("no cache") else {}
                    times.append(first_byte(command, data, {**os.environ, **fresh}))
            results["first byte out, s"][label] = median(times)
    show(results, args.json)
    return 0
