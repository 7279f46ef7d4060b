"""vx-codec while it runs: how signals end it, when each sound leaves, and how far it reads ahead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_streams import cut, one_by_one, pipe, sound, spoken, wire
from codec_runs import FRAME_BYTES, HEADER, begun, decoded, sizes, start
from processes import WAIT_S, wait_until

from voxtral_pipes.formats.frame import encode
from voxtral_pipes.formats.wav_writer import UNKNOWN


@pytest.fixture(scope="module")
def model(tiny_tts_model: Path) -> Path:
    return tiny_tts_model


# --- signals


@contextlib.contextmanager
def into_file(
    path: Path, *options: str | Path, model: Path, **streams: object
) -> Iterator[subprocess.Popen[bytes]]:
    with path.open("wb") as file:
        process = start(*options, model=model, stdout=file.fileno(), **streams)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sizes_are_set_before_a_signal_ends_it(number: signal.Signals, model: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "out.wav", HEADER + 10 * FRAME_BYTES
    with into_file(path, model=model) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(begun(sound(10)))
        wait_until(lambda: path.stat().st_size == whole)
        if number == signal.SIGINT:
            process.send_signal(number)
            time.sleep(0.3)
            assert process.poll() is None and sizes(path.read_bytes())[0] == UNKNOWN
        process.send_signal(number)
        assert process.wait(WAIT_S) == -number
        assert process.stderr.read() == b""
    assert sizes(path.read_bytes()) == (whole - 8, whole - HEADER)
    assert path.read_bytes()[HEADER:] == decoded(model)


def test_the_first_interrupt_is_enough_where_stdin_is_no_pipe(model: Path, tmp_path: Path) -> None:
    path, saved = tmp_path / "out.wav", tmp_path / "codes.vx"
    saved.write_bytes(begun(sound(20000)))
    with saved.open("rb") as codes, into_file(path, model=model, stdin=codes.fileno()) as process:
        wait_until(lambda: path.stat().st_size > HEADER)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == -signal.SIGINT
        assert process.stderr is not None and process.stderr.read() == b""
    riff, data = sizes(path.read_bytes())
    assert riff == 36 + data and data == path.stat().st_size - HEADER


def test_unfinished_files_are_removed_before_a_signal_ends_it(model: Path, tmp_path: Path) -> None:
    with start("--out-dir", tmp_path, model=model) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(wire(pipe({0: one_by_one(sound(3)), 5: cut(sound(3))}, ended=False)))
        wait_until(
            lambda: sum(path.stat().st_size for path in tmp_path.iterdir()) == 2 * HEADER + 6 * FRAME_BYTES
        )
        assert all(path.name.endswith(".tmp") for path in tmp_path.iterdir())
        process.terminate()
        assert process.wait(WAIT_S) == -signal.SIGTERM
        assert (
            process.stderr.read() == b"vx-codec: warning: not finished and not kept: 00000.wav, 00005.wav\n"
        )
    assert list(tmp_path.iterdir()) == []


# --- time


def test_each_frame_is_heard_when_it_has_come(model: Path) -> None:
    frames = [encode(frame) for frame in pipe({0: one_by_one(sound(3))})]
    with start("--format", "raw", model=model) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"".join(frames[:2]))
        for frame in frames[2:5]:
            process.stdin.write(frame)
            got = 0
            while got < FRAME_BYTES:
                got += len(process.stdout.read(FRAME_BYTES - got))
        process.stdin.write(b"".join(frames[5:]))
        assert process.communicate(timeout=WAIT_S) == (b"", b"")
    assert process.returncode == 0


def test_a_slow_player_stops_nobody_but_reading_ahead_has_an_end(model: Path) -> None:
    """The player takes nothing, and 3000 frames (400 kB) go in; a pipe holds 64 KiB.  Then 60000 do not."""
    data = spoken(sound(3000))
    with start("-v", model=model) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(data[:-1])  # returns, with nobody reading
        held = process.stdout.read(4096)
        assert held.startswith(b"RIFF")
        process.stdout.close()
        process.stdin.write(data[-1:])
        process.stdin.close()
        assert process.wait(WAIT_S) == -signal.SIGPIPE
        told = process.stderr.read().decode().splitlines()[-1]
    assert told.startswith("vx-codec: read ahead at most ")
    most = int(told.split()[5])
    assert len(data) - (1 << 16) < most <= len(data)
    with start(model=model) as process:
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        endless = begun(sound(60000))
        given, changed = 0, time.monotonic()
        while given < 4 << 20 or time.monotonic() < changed + 0.5:
            with contextlib.suppress(BlockingIOError):
                given += os.write(process.stdin.fileno(), endless[given : given + (1 << 16)])
                changed = time.monotonic()
            assert time.monotonic() < changed + WAIT_S
            time.sleep(0.002)
        assert 4 << 20 <= given <= (4 << 20) + (1 << 18) < len(endless)
        process.kill()
