"""A stream of many hours through the real pipe, faster than real time: does memory stay flat, does every token come?

Synthetic speech-like noise goes in as raw PCM; every 80 ms must come out as one line.  The tiny model's windows are
passed within seconds, the tables of the published one (positions 131,072 and 524,288) within hours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipe import Pipe, hearing
from benchmarks.report import show

ROOT = Path(__file__).resolve().parents[2]
RATE_HZ, TOKEN_SAMPLES = 16000, 1280
BLOCK_S = 10
BEFORE_END = 60
"""In tokens: what comes while the stream is not ended; all processes live then."""


def block(rng: np.random.Generator) -> bytes:
    """Make ten seconds of noise whose loudness moves as that of speech does, with pauses."""
    envelope = np.repeat(np.clip(rng.normal(0.05, 0.06, BLOCK_S * 10), 0, 0.4), RATE_HZ // 10)
    samples = envelope * rng.standard_normal(BLOCK_S * RATE_HZ)
    data: bytes = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    return data


def feed(pipe: Pipe, blocks: int, seen: threading.Event) -> None:
    """Write the whole stream; the pipe itself holds the writer back.  It ends once the memory at its end is `seen`."""
    rng = np.random.default_rng(0)
    varied = [block(rng) for _ in range(60)]
    for number in range(blocks):
        pipe.stdin.write(varied[number % len(varied)])
    seen.wait()
    pipe.stdin.close()


def soak(path: str, hours: float, report_s: float) -> dict[str, Any]:
    """Run the stream and return memory at the tenth, the middle and the end, and the tokens that came."""
    pipe = hearing(path, "cpu", "auto", subprocess.PIPE)
    blocks = int(hours * 3600 / BLOCK_S)
    seen = threading.Event()
    threading.Thread(target=feed, args=(pipe, blocks, seen), daemon=True).start()
    expected = blocks * BLOCK_S * RATE_HZ // TOKEN_SAMPLES + 11
    points = {expected // 10: "a tenth", expected // 2: "half", expected - BEFORE_END: "the end"}
    figures: dict[str, Any] = {}
    started = said = time.perf_counter()
    tokens = 0
    for _ in pipe.stdout:
        tokens += 1
        if tokens in points:
            for name, held in pipe.resident_mb().items():
                figures[f"{name} MB at {points[tokens]}"] = round(held, 1)
            if tokens == expected - BEFORE_END:
                seen.set()
        if time.perf_counter() - said > report_s:
            said = time.perf_counter()
            print(f"{tokens * 0.08 / 3600:.2f} h, {pipe.resident_mb()}", file=sys.stderr)
    seconds = time.perf_counter() - started
    pipe.wait()
    return {
        "hours of audio": hours,
        "wall minutes": seconds / 60,
        "times real time": hours * 3600 / seconds,
        "tokens": tokens,
        "tokens expected at most": expected,
        **figures,
    }


def main(arguments: list[str]) -> int:
    """Run `scripts/soak`; the status is 1 if tokens are missing or a process grew."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--allow-mb", type=float, default=8.0, help="growth allowed from a tenth to the end")
    parser.add_argument("--report-s", type=float, default=60.0, help="seconds between progress lines")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    if args.hours * 3600 < BLOCK_S:
        parser.error(f"--hours {args.hours:g}: at least {BLOCK_S} s are needed, {BLOCK_S / 3600:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        maker = [sys.executable, str(ROOT / "scripts/make-random-model"), "asr", "--size", "tiny"]
        subprocess.run([*maker, f"{folder}/tiny"], check=True)
        figures = soak(f"{folder}/tiny", args.hours, args.report_s)
    grown = {
        name: figures[f"{name} MB at the end"] - figures[f"{name} MB at a tenth"]
        for name in ("vx-mel", "vx-encode", "vx-decode", "vx-detok")
        if f"{name} MB at the end" in figures
    }
    figures |= {f"{name} MB grown": round(by, 1) for name, by in grown.items()}
    show({"soak": figures}, args.json)
    # Only an end-of-sequence token over the right padding may end the stream early.
    missing = figures["tokens expected at most"] - figures["tokens"]
    return int(not grown or missing not in range(12) or max(grown.values()) > args.allow_mb)
