"""Reading ahead: bounded, in order, interruptible, and never in anyone's way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

import pytest
from code_streams import hello, sound, spoken, wire
from processes import wait_until

from voxtral_pipes.cli.ahead import ReadAhead
from voxtral_pipes.errors import BadInputError, TruncatedError
from voxtral_pipes.formats.frame import FrameReader

WAIT_S = 20


def pieces(data: Iterable[bytes]) -> Callable[[int], bytes]:
    left = [piece for piece in data if piece]

    def read(size: int) -> bytes:
        if not left:
            return b""
        piece = left[0][:size]
        left[0] = left[0][size:]
        if not left[0]:
            left.pop(0)
        return piece

    return read


def test_bytes_come_as_they_were_whatever_their_pieces() -> None:
    data = bytes(range(256)) * 40
    for size in (1, 7, 4096, 20000):
        source = ReadAhead(pieces([data[:1], data[1:300], data[300:301], data[301:]]), limit=512)
        got = b""
        while piece := source.read(size):
            got += piece
        assert got == data
        assert source.taken_bytes == len(data) and 0 < source.most_bytes <= 512
        assert source.read(1) == b""


def test_it_reads_ahead_up_to_its_limit_and_goes_on_when_there_is_room() -> None:
    reading, writing = os.pipe()
    source = ReadAhead(lambda size: os.read(reading, size), limit=100_000)
    written = 0

    def write() -> None:
        nonlocal written
        while written < 500_000:
            written += os.write(writing, bytes(1000))
        os.close(writing)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    wait_until(lambda: source.most_bytes == 100_000, WAIT_S)
    wait_until(lambda: written >= 100_000, WAIT_S)
    time.sleep(0.05)
    before = written
    assert before <= 100_000 + (1 << 16) + 1000  # its buffer, and the pipe's
    assert len(source.read(50_000)) == 50_000
    wait_until(lambda: written >= before + 30_000, WAIT_S)  # a pipe gives back whole pages
    assert len(source.read(500_000)) == 450_000
    assert source.most_bytes == 100_000
    thread.join(WAIT_S)
    os.close(reading)


def test_an_error_comes_behind_the_bytes_before_it() -> None:
    left = [b"abc"]

    def fail(size: int) -> bytes:
        if left:
            return left.pop()
        raise OSError(5, "Input/output error")

    source = ReadAhead(fail)
    time.sleep(0.05)
    assert source.read(3) == b"abc"
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            source.read(1)


def test_a_signal_is_handled_while_it_waits() -> None:
    reading, writing = os.pipe()
    source = ReadAhead(lambda size: os.read(reading, size))
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(time.monotonic()))
    try:

        def disturb() -> None:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: bool(handled), WAIT_S)  # while `read` waits, not after it
            os.write(writing, b"x")
            os.close(writing)

        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        used = time.process_time()
        assert source.read(5) == b"x"
        assert time.process_time() - used < 0.1  # nobody was busy
        thread.join(WAIT_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(reading)
    assert len(handled) == 1


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"RIFF....WAVE", "put vx-mel before"),
        (wire([hello()]).replace(b"codes", b"hidde"), "check the order of the commands"),
        (wire([hello({"family": "voxtral-tts", "fp": "0" * 16})]), "made with another model"),
        (b"", "empty"),
        (wire([hello()])[:-1], "died"),
    ],
)
def test_wrong_input_is_refused_early(data: bytes, told: str) -> None:
    source = ReadAhead(pieces([data]))
    wait_until(lambda: source._ended, WAIT_S)
    with pytest.raises(BadInputError, match=told):
        source.check_hello("codes", "vx-codec", {"family": "voxtral-tts", "fp": "1" * 16})


def test_a_check_takes_nothing_and_waits_for_nothing() -> None:
    data = spoken(sound(3))
    source = ReadAhead(pieces([data]))
    wait_until(lambda: source._ended, WAIT_S)
    source.check_hello("codes", "vx-codec")
    assert len(list(FrameReader(source))) == 8
    reading, writing = os.pipe()
    quiet = ReadAhead(lambda size: os.read(reading, size))
    quiet.check_hello("codes", "vx-codec")
    os.write(writing, data[:20])
    wait_until(lambda: quiet.most_bytes == 20, WAIT_S)
    quiet.check_hello("codes", "vx-codec")
    os.close(writing)
    wait_until(lambda: quiet._ended, WAIT_S)
    with pytest.raises(TruncatedError):
        quiet.check_hello("codes", "vx-codec")
    os.close(reading)
