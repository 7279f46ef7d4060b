"""The WAV reader: every sample format, bare samples, and the headers recorders really send."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from wav_files import HEADERS, UNKNOWN, chunk, extensible, fails, fmt, read, riff, s16

from voxtral_pipes.errors import UsageError
from voxtral_pipes.formats import wav
from voxtral_pipes.formats.wav import ENCODING_BYTES, PcmFormat, WavReader, decode, parse_raw

DATA = Path(__file__).resolve().parent.parent / "data"


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


def test_nothing_is_no_audio() -> None:
    assert "no audio" in fails(b"")
    assert "no audio" in fails(b"", raw=PcmFormat("s16", 16000, 1))


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


def test_a_real_recording() -> None:
    samples, said, reader = read((DATA / "tt-weasels.wav").read_bytes())
    assert samples.shape == (46256, 1) and reader.rate_hz == 16000 and said == [] and reader.ended
    assert 0.05 < float(np.abs(samples).max()) < 1
