"""The WAV reader: every sample format, the headers recorders really send, hostile headers, and every cut."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtral_pipes.errors import BadInputError, UsageError, VoxError
from voxtral_pipes.formats import wav
from voxtral_pipes.formats.frame import Frame, encode
from voxtral_pipes.formats.wav import ENCODING_BYTES, PcmFormat, Samples, WavReader, decode, parse_raw

DATA = Path(__file__).resolve().parent.parent / "data"
GUID_REST = bytes.fromhex("000000001000800000aa00389b71")
UNKNOWN = 0xFFFFFFFF


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    pad = b"\0" * (len(body) & 1)
    return name + struct.pack("<I", len(body) if size is None else size) + body + pad


def fmt(
    tag: int = 1,
    bits: int = 16,
    channels: int = 1,
    rate: int = 16000,
    align: int | None = None,
    tail: bytes = b"",
) -> bytes:
    align = channels * bits // 8 if align is None else align
    return chunk(
        b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * align & 0xFFFFFFFF, align, bits) + tail
    )


def extensible(tag: int, bits: int, valid: int, channels: int = 1, align: int | None = None) -> bytes:
    tail = struct.pack("<HHIH", 22, valid, 0, tag) + GUID_REST
    return fmt(0xFFFE, bits, channels, align=align, tail=tail)


def riff(*chunks: bytes, magic: bytes = b"RIFF", size: int = UNKNOWN) -> bytes:
    return magic + struct.pack("<I", size) + b"WAVE" + b"".join(chunks)


def s16(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}h", *values)


def read(
    data: bytes, cuts: tuple[int, ...] = (), raw: PcmFormat | None = None
) -> tuple[Samples, list[str], WavReader]:
    """Push `data` in the pieces that `cuts` make of it; return all samples, the warnings, and the reader."""
    said: list[str] = []
    reader = WavReader(raw, said.append)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    got = [reader.push(data[start:end]) for start, end in pairwise(edges)]
    reader.finish()
    return np.concatenate([piece for piece in got if piece.size] or [got[-1]]), said, reader


def fails(data: bytes, raw: PcmFormat | None = None) -> str:
    with pytest.raises(BadInputError) as caught:
        read(data, raw=raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def low_bytes(values: list[int], size: int) -> bytes:
    return b"".join((value % (1 << 8 * size)).to_bytes(size, "little") for value in values)


S24 = [0, 1, -1, 0x7FFFFF, -0x800000, 0x123456, -0x123456]
S32 = [0, 256, -256, 2**31 - 128, -(2**31), 0x12345600]
FORMATS = {
    "u8": (fmt(bits=8), bytes([0, 127, 128, 255]), [-1, -1 / 128, 0, 127 / 128]),
    "s16": (fmt(), s16(0, 1, -1, 32767, -32768), [0, 2**-15, -(2**-15), 32767 / 32768, -1]),
    "s24": (fmt(bits=24), low_bytes(S24, 3), [v / 2**23 for v in S24]),
    "s24 in 4 bytes": (
        fmt(bits=24, align=4),
        b"".join(low_bytes([v], 3) + b"\x55" for v in S24),
        [v / 2**23 for v in S24],
    ),
    "s32": (fmt(bits=32), low_bytes(S32, 4), [v / 2**31 for v in S32]),
    "f32": (fmt(3, 32), struct.pack("<4f", 0.25, -0.5, 1.5, -3), [0.25, -0.5, 1.5, -3]),
    "f32 with fmt of 18 and fact": (
        fmt(3, 32, tail=b"\0\0") + chunk(b"fact", b"\4\0\0\0"), struct.pack("<2f", 0.25, -2), [0.25, -2],
    ),
    "f64": (fmt(3, 64), struct.pack("<3d", 0.25, -0.5, 1e-3), [0.25, -0.5, 1e-3]),
    "A-law": (fmt(6, 8), bytes([0x55, 0xD5, 0x2A, 0xAA]), [v / 2**15 for v in (-8, 8, -32256, 32256)]),
    "mu-law": (fmt(7, 8, tail=b"\0\0"), bytes([0, 0x80, 0xFF, 0x7F]), [-32124 / 2**15, 32124 / 2**15, 0, 0]),
    "extensible s16": (extensible(1, 16, 16), s16(5, -6), [5 / 2**15, -6 / 2**15]),
    "extensible s24": (extensible(1, 24, 24), low_bytes(S24, 3), [v / 2**23 for v in S24]),
    "extensible 24 in 32, left-justified": (
        extensible(1, 32, 24), low_bytes([v << 8 for v in S24], 4), [v / 2**23 for v in S24],
    ),
    "extensible 24 bits said, 4 bytes held": (
        extensible(1, 24, 24, align=4), low_bytes([v << 8 for v in S24], 4), [v / 2**23 for v in S24],
    ),
    "extensible f32": (extensible(3, 32, 32), struct.pack("<2f", 0.1, -0.1), [0.1, -0.1]),
    "extensible mu-law": (extensible(7, 8, 8), bytes([0]), [-32124 / 2**15]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name: str) -> None:
    header, body, expected = FORMATS[name]
    for size in (len(body), UNKNOWN):
        samples, said, reader = read(riff(header, chunk(b"data", body, size)[: 8 + len(body)]))
        assert samples.dtype == np.float32 and samples.shape == (len(expected), 1)
        np.testing.assert_array_equal(samples[:, 0], np.array(expected, np.float32))
        assert reader.ended == (size != UNKNOWN) and said == []


def test_g711_tables_equal_the_reference_ones() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = pytest.importorskip("audioop")
    every = bytes(range(256))
    for name, expand in (("alaw", audioop.alaw2lin), ("mulaw", audioop.ulaw2lin)):
        np.testing.assert_array_equal(decode(every, name) * 2**15, np.frombuffer(expand(every, 2), "<i2"))


def test_channels_come_interleaved() -> None:
    samples, _, reader = read(riff(fmt(channels=3), chunk(b"data", s16(1, 2, 3, 4, 5, 6))))
    assert (reader.channels, reader.rate_hz) == (3, 16000)
    np.testing.assert_array_equal(samples * 2**15, [[1, 2, 3], [4, 5, 6]])


HEADERS = {
    "arecord": riff(fmt(), b"data\x00\x00\x00\x80", size=0x80000024),
    "sox": riff(fmt(), b"data\x00\xf0\xff\x7f", size=0x7FFFF024),
    "ffmpeg": riff(fmt(), chunk(b"LIST", b"INFOISFT\x0d\0\0\0Lavf60.16.100\0"), b"data\xff\xff\xff\xff"),
    "ffmpeg, odd chunk": riff(fmt(), chunk(b"LIST", b"odd"), b"data\xff\xff\xff\xff"),
    "ffmpeg rf64 on a pipe": riff(chunk(b"ds64", bytes(28)), fmt(), b"data\xff\xff\xff\xff", magic=b"RF64"),
    "ffmpeg rf64 auto": riff(chunk(b"JUNK", bytes(28)), fmt(), b"data\xff\xff\xff\xff"),
    "size of 0": riff(fmt(), b"data\0\0\0\0", size=36),
    "broadcast": riff(chunk(b"bext", bytes(603)), fmt(), chunk(b"PEAK", bytes(16)), b"data\0\0\0\0"),
    "long fmt": riff(fmt(tail=bytes(40)), b"data\0\0\0\0"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_unknown_sizes_read_to_the_end(name: str) -> None:
    samples, said, reader = read(HEADERS[name] + s16(*range(100)))
    np.testing.assert_array_equal(samples[:, 0] * 2**15, np.arange(100))
    assert said == [] and not reader.ended


def test_rf64_takes_its_size_from_ds64() -> None:
    head = riff(
        chunk(b"ds64", struct.pack("<QQQI", 0, 6, 3, 0)),
        fmt(),
        b"data" + struct.pack("<I", UNKNOWN),
        magic=b"RF64",
    )
    samples, said, reader = read(head + s16(1, 2, 3) + chunk(b"LIST", b"more"))
    assert len(samples) == 3 and reader.ended and said == []


def test_the_header_is_known_before_any_sample() -> None:
    reader = WavReader(None, lambda line: None)
    head = HEADERS["ffmpeg"]
    known = []
    for start in range(len(head)):
        assert len(reader.push(head[start : start + 1])) == 0
        known.append((reader.ready, reader.format))
    assert set(known[:-1]) == {(False, None)} and known[-1] == (True, PcmFormat("s16", 16000, 1))


def test_samples_come_at_once_whatever_the_writer_still_holds() -> None:
    reader = WavReader(None, lambda line: None)
    reader.push(HEADERS["arecord"])
    for value in range(5):
        low, high = s16(value)[:1], s16(value)[1:]
        assert len(reader.push(low)) == 0
        assert reader.push(high)[0, 0] == value / 2**15


def test_a_header_without_samples_is_valid() -> None:
    for data in (HEADERS["arecord"], HEADERS["size of 0"]):
        samples, said, _ = read(data)
        assert len(samples) == 0 and said == []


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        (riff(fmt(), chunk(b"data", s16(1, 2), 3200)), "ends early: 0.00 s of 0.10 s"),
        (HEADERS["arecord"] + s16(1, 2) + b"x", "last 1 bytes are no whole sample"),
        (riff(fmt(), chunk(b"data", s16(1, 2) + b"x")), "last 1 bytes are no whole sample"),
        (riff(fmt(), chunk(b"data", s16(1, 2))) + riff(fmt(), chunk(b"data", s16(3))), "another WAV follows"),
        (riff(fmt(), chunk(b"data", s16(1, 2)), chunk(b"huge", b"", 1 << 31)), "declared end"),
        (riff(fmt(), chunk(b"data", s16(1, 2)), bytes(64)), "declared end"),
    ],
)
def test_warnings_for_odd_ends(data: bytes, warning: str) -> None:
    samples, said, _ = read(data)
    np.testing.assert_array_equal(samples[:, 0] * 2**15, [1, 2])
    assert len(said) == 1 and warning in said[0]


def test_chunks_behind_the_declared_end_are_skipped() -> None:
    data = riff(fmt(), chunk(b"data", s16(1, 2)), chunk(b"LIST", b"abc"), chunk(b"id3 ", bytes(5000)))
    samples, said, reader = read(data, cuts=tuple(range(0, len(data), 7)))
    assert len(samples) == 2 and said == [] and reader.ended and not reader.done


def test_odd_data_is_padded_before_the_next_chunk() -> None:
    samples, said, reader = read(riff(fmt(bits=8), chunk(b"data", bytes(3)), chunk(b"LIST", b"ab")))
    assert len(samples) == 3 and said == [] and not reader.done


def test_a_second_wav_ends_the_reading() -> None:
    one = riff(fmt(), chunk(b"data", s16(1, 2)))
    _, said, reader = read(one + one)
    assert reader.done and len(said) == 1
    assert len(reader.push(s16(7, 7, 7))) == 0


def test_telephone_band_is_warned_of_for_arecords_default_only() -> None:
    for header, expected in ((fmt(bits=8, rate=8000), 1), (fmt(bits=8), 0), (fmt(rate=8000), 0)):
        _, said, _ = read(riff(header, b"data\0\0\0\x80") + b"\x80\x80")
        assert len(said) == expected
        assert all("telephone" in line and "arecord" in line for line in said)


def test_arecords_silent_stop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wav, "ARECORD_LIMIT_BYTES", 2000)
    for n_samples, expected in ((1000, 1), (999, 0), (1001, 0)):
        _, said, _ = read(HEADERS["arecord"] + bytes(2 * n_samples))
        assert len(said) == expected and all("2 GiB" in line and "--raw" in line for line in said)
    assert read(HEADERS["sox"] + bytes(2000))[1] == []


@pytest.mark.parametrize(
    ("code", "values"), [("f", [0.5, np.nan, np.inf, -np.inf, 0.5]), ("d", [0.5, np.nan, 1e300, -1e300, 0.5])]
)
def test_values_that_are_no_audio_become_zero_with_one_warning(code: str, values: list[float]) -> None:
    body = struct.pack(f"<5{code}", *values)
    header = riff(fmt(3, 8 * len(body) // 5), b"data\0\0\0\0")
    samples, said, _ = read(header + body + body, cuts=(len(header) + 3, len(header) + len(body)))
    np.testing.assert_array_equal(samples[:, 0], [0.5, 0, 0, 0, 0.5] * 2)
    assert len(said) == 1 and "NaN" in said[0]


def test_a_nan_that_signals_is_as_quiet_as_another() -> None:
    """numpy warned of it by itself."""
    body = struct.pack("<dQd", 0.5, 0x7FF4000000000000, 0.5)
    samples, said, _ = read(riff(fmt(3, 64), b"data\0\0\0\0") + body)
    np.testing.assert_array_equal(samples[:, 0], [0.5, 0, 0.5])
    assert len(said) == 1 and "NaN" in said[0]


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


def test_nothing_is_no_audio() -> None:
    assert "no audio" in fails(b"")
    assert "no audio" in fails(b"", raw=PcmFormat("s16", 16000, 1))


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s16le:16000:1", PcmFormat("s16", 16000, 1)),
        ("s24-32le:48000:2", PcmFormat("s24-32", 48000, 2)),
        ("mulaw:8000:1", PcmFormat("mulaw", 8000, 1)),
        ("f64le:768000:32", PcmFormat("f64", 768000, 32)),
    ],
)
def test_raw_option(text: str, expected: PcmFormat) -> None:
    assert parse_raw(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "s16le", "s16le:16000", "s16le:16000:1:1", "s16be:16000:1", "s16le:0:1", "s16le:16000:0",
     "s16le:16k:1", "s16le:16000:33", "s16le:999:1", "s16le:-16000:1",
     "s16le:99999999999999999999:1", "s16le:²:1"],
)  # fmt: skip
def test_raw_option_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_raw(text)


@pytest.mark.parametrize(
    "name", ["u8", "s16le", "s24le", "s24-32le", "s32le", "f32le", "f64le", "alaw", "mulaw"]
)
def test_raw_reads_what_a_wav_of_the_same_bytes_reads(name: str) -> None:
    raw = parse_raw(f"{name}:44100:2")
    size = ENCODING_BYTES[raw.encoding]
    body = np.random.default_rng(1).integers(0, 60, 20 * size, np.uint8).tobytes()
    tag = {"f32le": 3, "f64le": 3, "alaw": 6, "mulaw": 7}.get(name, 1)
    bits = 24 if name == "s24-32le" else 8 * size
    by_wav = read(riff(fmt(tag, bits, 2, 44100, align=2 * size), b"data\0\0\0\0") + body)[0]
    by_raw, _, reader = read(body, raw=raw)
    assert by_raw.shape == (10, 2) and reader.rate_hz == 44100 and by_raw.any()
    np.testing.assert_array_equal(by_raw, by_wav)


def test_a_raw_stream_may_look_like_a_header() -> None:
    data = riff(fmt(), b"data\0\0\0\0")
    assert len(read(data, raw=PcmFormat("s16", 16000, 1))[0]) == len(data) // 2


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


def test_a_real_recording() -> None:
    samples, said, reader = read((DATA / "tt-weasels.wav").read_bytes())
    assert samples.shape == (46256, 1) and reader.rate_hz == 16000 and said == [] and reader.ended
    assert 0.05 < float(np.abs(samples).max()) < 1
