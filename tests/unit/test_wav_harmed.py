"""The WAV reader on what is no WAV, broken or cut anywhere: one line or finite samples, and bounded memory."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wav_files import HEADERS, chunk, extensible, fails, fmt, read, riff, s16

from voxtral_pipes.errors import VoxError
from voxtral_pipes.formats.frame import Frame, encode
from voxtral_pipes.formats.wav import WavReader, parse_raw


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (b"RIFX", "big-endian"), (b".snd", "AU"), (b"FORM", "AIFF"), (b"riff", "Wave64"), (b".SoX", "sox"),
        (b"fLaC", "FLAC"), (b"OggS", "Ogg"), (b"ID3\x04", "MP3"), (b"\xff\xfb\x90\x64", "MP3"),
        (b"\xff\xf1\x50\x80", "AAC"), (b"\x1aE\xdf\xa3", "WebM"),
    ],
)  # fmt: skip
def test_foreign_formats_are_named_with_the_way_out(head: bytes, named: str) -> None:
    message = fails(head + bytes(100))
    assert named in message and "ffmpeg -i" in message


def test_frames_text_and_bare_samples_are_told_apart() -> None:
    assert "frame stream" in fails(encode(Frame("end")))
    assert "GGUF" in fails(b"GGUF" + bytes(20))
    for data in (s16(0, -1, 1, -2), b"\xff\xff\xfe\xff", b"hello", b"he", b"\0"):
        assert "--raw s16le:16000:1" in fails(data)


def test_every_truncation_of_a_header_is_an_error() -> None:
    for head in (HEADERS["ffmpeg, odd chunk"], riff(extensible(1, 16, 16), b"data\0\0\0\0")):
        for length in range(1, len(head)):
            assert "inside the WAV header" in fails(head[:length])
        assert len(read(head)[0]) == 0


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (riff(b"data\4\0\0\0", s16(1, 2)), "before their format"),
        (riff(fmt(channels=0)), "0 channels"),
        (riff(fmt(channels=33)), "33 channels"),
        (riff(fmt(rate=999)), "999 Hz"),
        (riff(fmt(rate=768001)), "768001 Hz"),
        (riff(fmt(channels=2, align=3)), "contradicts"),
        (riff(fmt(align=0)), "contradicts"),
        (riff(fmt(2, 4, align=256)), "tag 0x0002"),
        (riff(fmt(0x55, 0, align=1)), "tag 0x0055"),
        (riff(fmt(bits=12, align=2)), "12 bits"),
        (riff(fmt(3, 16)), "tag 0x0003"),
        (riff(extensible(1, 64, 64)), "64 bits"),
        (riff(extensible(1, 16, 24)), "tag 0x0001"),
        (riff(extensible(0x161, 16, 16)), "tag 0x0161"),
        (riff(fmt(0xFFFE, 16)), "16 of 40"),
        (riff(chunk(b"fmt ", bytes(14))), "14 bytes"),
        (riff(chunk(b"JUNK", b"", (16 << 20) + 1)), "16777217"),
        (riff(chunk(b"fmt ", b"", 0xFFFFFFFF)), "4294967295"),
        (riff(chunk(b"\x01\x02\x03\x04", b"")), "corrupt"),
        (riff(chunk(b"ds64", bytes(8)), magic=b"RF64"), "ds64"),
        (b"RIFF" + bytes(4) + b"AVI LIST", "AVI"),
    ],
)
def test_unusable_headers(data: bytes, part: str) -> None:
    assert part in fails(data)


def test_the_largest_chunk_is_skipped_without_being_held() -> None:
    reader = WavReader(None, lambda line: None)
    piece = bytes(1 << 16)
    tracemalloc.start()
    reader.push(riff(b"JUNK" + struct.pack("<I", 16 << 20)))
    for _ in range((16 << 20) // len(piece)):
        reader.push(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(reader.push(fmt() + b"data\0\0\0\0" + s16(9))) == 1
    assert peak < 1 << 20


def test_memory_is_flat_over_a_long_stream() -> None:
    reader = WavReader(parse_raw("s24le:48000:2"), lambda line: None)
    piece = bytes(60001)
    tracemalloc.start()
    n_samples = sum(len(reader.push(piece)) for _ in range(200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_samples == 200 * len(piece) // 6 and peak < 2 << 20


WHOLE = {
    "stereo with a trailer": riff(
        chunk(b"LIST", b"odd"), fmt(channels=2), chunk(b"data", s16(*range(-9, 9)) + b"x"),
        chunk(b"LIST", b"abc"), riff(fmt()),
    ),
    "float to the end": riff(fmt(3, 32), b"data\0\0\0\0") + struct.pack("<9f", *range(8), np.nan) + b"xyz",
    "24 bits, cut short": riff(extensible(1, 24, 24, channels=2), chunk(b"data", bytes(range(61)), 999)),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_every_single_cut_gives_the_same(name: str) -> None:
    data = WHOLE[name]
    whole, said, _ = read(data)
    assert len(whole) > 5 and said
    for cut in range(len(data) + 1):
        samples, told, _ = read(data, (cut,))
        np.testing.assert_array_equal(samples, whole)
        assert told == said
    np.testing.assert_array_equal(read(data, tuple(range(len(data))))[0], whole)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(0, 200), max_size=20))
def test_any_cutting_gives_the_same(name: str, cuts: list[int]) -> None:
    whole, said, _ = read(WHOLE[name])
    samples, told, _ = read(WHOLE[name], tuple(cuts))
    np.testing.assert_array_equal(samples, whole)
    assert told == said


def outcome(data: bytes, cuts: tuple[int, ...]) -> tuple[str, bytes]:
    try:
        samples, said, _ = read(data, cuts)
    except VoxError as error:
        return str(error), b""
    assert np.isfinite(samples).all()
    return repr(said), samples.tobytes()


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from([*sorted(HEADERS.values()), *sorted(WHOLE.values())]),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6),
    st.binary(max_size=40),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_damaged_headers_end_in_one_line_or_in_finite_samples(
    head: bytes, damage: list[tuple[int, int]], rest: bytes, cuts: list[int]
) -> None:
    broken = bytearray(head + rest)
    for position, value in damage:
        broken[position % len(broken)] = value
    assert outcome(bytes(broken), ()) == outcome(bytes(broken), tuple(cuts))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_garbage_never_gets_through(data: bytes, as_riff: bool) -> None:
    data = b"RIFF\xff\xff\xff\xffWAVE" + data if as_riff else b"\x7f" + data
    fails(data)
