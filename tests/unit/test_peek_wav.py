"""vx-peek on a WAV: the numbers, every cut, odd and hostile input, the files, and memory on a long one."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.wav import PcmFormat, Samples
from voxtral_pipes.models.collect import SamplesCollector
from voxtral_pipes.models.waveform import Spectrogram, Waveform
from voxtral_pipes.stages.peek import as_json
from voxtral_pipes.stages.peek_wav import Collector, WavPeek, as_line, full_scale

UNKNOWN = 0xFFFFFFFF


def header(
    tag: int = 1, bits: int = 16, channels: int = 1, rate_hz: int = 24000, size: int = UNKNOWN
) -> bytes:
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * align & UNKNOWN, align, bits)
    return b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", size)


def s16(values: npt.ArrayLike) -> bytes:
    return np.asarray(values).astype("<i2").tobytes()


def f32(values: npt.ArrayLike) -> bytes:
    return np.asarray(values).astype("<f4").tobytes()


class Seen:
    """Runs vx-peek over the bytes of a WAV, cut at `cuts`, and keeps what it shows and says."""

    def __init__(self, data: bytes, cuts: Iterable[int] = (), collectors: Iterable[Collector] = ()) -> None:
        self.shown: list[dict[str, Any]] = []
        self.warned: list[str] = []
        self.reported: list[str] = []
        peek = WavPeek(self.shown.append, self.warned.append, self.reported.append, collectors)
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for start, end in pairwise(edges):
            peek.push(data[start:end])
        peek.finish()
        self.problems = peek.problems
        assert self.problems == len(self.reported)

    @property
    def outcome(self) -> tuple[str, list[str], list[str]]:
        return repr(self.shown), self.warned, self.reported


# --- the numbers


def test_each_second_and_the_whole_are_measured() -> None:
    loud, quiet = np.full(1000, 16384), np.full(500, 0)
    loud[::2] *= -1
    loud[7] = 32767
    seen = Seen(header(rate_hz=1000) + s16([*loud, *quiet]))
    power = (999 * 0.25 + (32767 / 32768) ** 2) / 1000
    first = {"peak_dbfs": 20 * np.log10(32767 / 32768), "rms_dbfs": 10 * np.log10(power), "clipped": 1}
    assert seen.shown == [
        {"kind": "wav", "encoding": "s16", "rate_hz": 1000, "channels": 1, "declared_seconds": None},
        pytest.approx({"kind": "audio", "t": 0, "u": 1000, "seconds": 0.0, **first}),
        {
            "kind": "audio", "t": 1000, "u": 500, "seconds": 1.0,
            "peak_dbfs": None, "rms_dbfs": None, "clipped": 0,
        },
        pytest.approx(
            {"kind": "end", "u": 1500, "seconds": 1.5, **first, "rms_dbfs": 10 * np.log10(power / 1.5)}
        ),
    ]  # fmt: skip
    assert [as_line(shown) for shown in seen.shown] == [
        "wav    s16  1000 Hz  1 channel  length unknown",
        "audio  t=0 (0.000 s)  u=1000  peak 0.0 dBFS  rms -6.0 dBFS  clipped 1",
        "audio  t=1000 (1.000 s)  u=500  peak silent  rms silent",
        "end    u=1500 (1.500 s)  peak 0.0 dBFS  rms -7.8 dBFS  clipped 1",
    ]
    assert [json.loads(as_json(shown)) for shown in seen.shown] == seen.shown


def test_channels_are_measured_together() -> None:
    seen = Seen(header(3, 32, 2, 8000, size=24) + f32([[0.5, -2.0], [0.0, 0.0], [0.0, 1.0]]))
    assert as_line(seen.shown[0]) == "wav    f32  8000 Hz  2 channels  0.000 s declared"
    expected = 10 * np.log10((0.25 + 4 + 1) / 6)
    assert seen.shown[1]["clipped"] == 2 and seen.shown[1]["rms_dbfs"] == pytest.approx(expected)
    assert seen.shown[1]["peak_dbfs"] == pytest.approx(20 * np.log10(2))


@pytest.mark.parametrize(
    ("tag", "bits", "samples", "clipped"),
    [
        (1, 8, bytes([0, 1, 2, 128, 254, 255]), 3),
        (1, 16, s16([-32768, -32767, -32766, 32766, 32767]), 3),
        (1, 24, b"\xff\xff\x7f\0\0\x80\xfe\xff\x7f", 2),
        (1, 32, struct.pack("<4i", 2**31 - 1, -(2**31), 0x7FFFFF00, 0x7FFFFE00), 3),
        (3, 32, f32([1, -1, 0.9999, 7]), 3),
        (6, 8, bytes([0x2A, 0xAA, 0x55]), 2),
        (7, 8, bytes([0, 0x80, 0xFF]), 2),
    ],
)
def test_clipped_samples_are_those_at_full_scale(tag: int, bits: int, samples: bytes, clipped: int) -> None:
    assert Seen(header(tag, bits) + samples).shown[1]["clipped"] == clipped


def test_float_has_no_greatest_value() -> None:
    assert full_scale("f64") == 1 and full_scale("mulaw") == 32124 / 32768


# --- any cutting

RANDOM = np.random.default_rng(5)
WAVS = {
    "of vx-codec, unknown length": header() + s16(RANDOM.integers(-30000, 30000, 50001)),
    "patched sizes": header(size=2 * 30000) + s16(RANDOM.integers(-99, 99, 30000)),
    "float stereo with a trailer": header(3, 32, 2, 2000, size=8 * 4500)
    + f32(RANDOM.normal(size=(4500, 2))) + b"LIST\x02\0\0\0ab",
    "truncated in a sample": header(size=99999) + s16(RANDOM.integers(-99, 99, 700)) + b"x",
    "two in a row": 2 * (header(rate_hz=1000, size=4200) + s16(RANDOM.integers(-99, 99, 2100))),
    "no samples": header(),
    "no numbers": header(3, 32, 1, 1000) + f32([0.5, np.nan, np.inf] * 700),
    "cut in the header": header()[:30],
    "of no use": header(0x55),
}  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(WAVS)), st.lists(st.integers(0, 60000), max_size=12))
def test_any_cutting_gives_the_same_report(name: str, cuts: list[int]) -> None:
    data = WAVS[name]
    cuts = [cut % (len(data) + 1) for cut in cuts]
    assert Seen(data, cuts).outcome == Seen(data).outcome


@pytest.mark.parametrize("name", WAVS)
def test_single_bytes_give_the_same_report_and_the_same_samples(name: str) -> None:
    data = WAVS[name][:9000]
    kept = [SamplesCollector(), SamplesCollector()]
    whole = Seen(data, (), kept[:1])
    assert Seen(data, range(len(data)), kept[1:]).outcome == whole.outcome
    first, second = map(load, kept)
    assert first["rate_hz"] == second["rate_hz"]
    np.testing.assert_array_equal(first["samples"], second["samples"])


# --- what is odd, and what is wrong


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated in a sample", ["last 1 bytes", "ends early"]),
        ("two in a row", ["another WAV follows the first and is not read"]),
        ("no numbers", ["not finite"]),
    ],
)
def test_odd_ends_are_warnings(name: str, said: list[str]) -> None:
    seen = Seen(WAVS[name])
    assert seen.problems == 0 and len(seen.warned) == len(said)
    assert all(part in line for part, line in zip(said, seen.warned, strict=True))
    assert seen.shown[-1]["kind"] == "end"


def test_telephone_quality_is_not_remarked_upon() -> None:
    assert Seen(header(1, 8, rate_hz=8000) + bytes(100)).warned == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (header()[:30], "inside the WAV header"),
        (header(0x55), "tag 0x0055"),
        (header(channels=0), "0 channels"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"RIFF\xff\xff\xff\xffWAVE" + bytes(100), "corrupt"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_no_other_command(data: bytes, said: str) -> None:
    seen = Seen(data)
    assert len(seen.reported) == 1 and said in seen.reported[0] and "vx-mel" not in seen.reported[0]
    assert seen.shown == [] and seen.warned == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=6), st.lists(st.integers(0, 200))
)
def test_whatever_the_header_it_shows_or_reports(damage: list[tuple[int, int]], cuts: list[int]) -> None:
    data = bytearray(header() + s16(range(60)))
    for position, value in damage:
        data[position] = value
    data[:4] = b"RIFF"
    seen = Seen(bytes(data), cuts, [SamplesCollector(), Waveform()])
    assert seen.outcome == Seen(bytes(data)).outcome
    assert [shown["kind"] for shown in seen.shown] in ([], ["wav", "audio", "end"], ["wav", "end"])
    assert len(seen.reported) == (not seen.shown)


# --- files


def load(collector: SamplesCollector) -> dict[str, Any]:
    file = io.BytesIO()
    collector.write(file)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def test_npz_memory_is_bounded() -> None:
    collector = SamplesCollector(max_bytes=1 << 20)
    seen = Seen(header() + bytes(1 << 20), range(0, 1 << 20, 5000), [collector])
    assert seen.problems == 1 and "more than 1 MiB" in seen.reported[0]
    assert seen.shown[-1]["u"] == 1 << 19  # the report goes on
    assert 0 < load(collector)["samples"].nbytes < 1 << 20


def test_npz_of_a_header_that_never_came() -> None:
    arrays = load(SamplesCollector())
    assert arrays["samples"].shape == (0, 0) and arrays["rate_hz"] == 0


def png(waveform: Waveform) -> bytes:
    file = io.BytesIO()
    waveform.write(file)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        header() + s16([1]),
        header() + bytes(2000),
        header(3, 32, 2) + f32(RANDOM.normal(size=(70000, 2))),
        header(3, 32) + f32([3e38, -3e38, 1e-45] * 100),
        header(rate_hz=768000) + s16(RANDOM.integers(-9, 9, 40000)),
        header(rate_hz=1000) + s16(RANDOM.integers(-9, 9, 40000)),
    ],
)
def test_any_wav_is_drawn(data: bytes) -> None:
    waveform = Waveform()
    assert Seen(data, (), [waveform]).problems == 0
    assert png(waveform)[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_to_draw() -> None:
    waveform = Waveform()
    Seen(header(), (), [waveform])
    for empty in (waveform, Waveform()):
        with pytest.raises(BadInputError, match="no samples came"):
            png(empty)


def test_the_envelope_keeps_every_extreme() -> None:
    waveform = Waveform()
    samples = RANDOM.normal(0, 0.1, (200000, 2)).astype(np.float32)
    samples[777], samples[150001] = (0.1, -0.9), (0.95, 0.2)
    waveform.begin(PcmFormat("f32", 24000, 2))
    for part in np.split(samples, [5, 8192, 100001]):
        waveform.add(part)
    image, group = waveform._envelope.image(), waveform._envelope.group
    assert group == 64
    whole = samples[: len(samples) // group * group].reshape(-1, 2 * group)
    np.testing.assert_array_equal(
        image[: len(whole)], np.column_stack([whole.min(axis=1), whole.max(axis=1)])
    )


def test_a_full_scale_sine_has_power_1_in_its_band() -> None:
    for rate_hz, window in ((16000, 512), (24000, 512), (48000, 1024)):
        spectrogram = Spectrogram(rate_hz)
        hz = 40 * rate_hz / window
        spectrogram.add(np.sin(2 * np.pi * hz * np.arange(rate_hz) / rate_hz))
        middle = spectrogram.columns.image()[10:-10]
        assert middle.argmax(axis=1).tolist() == [40] * len(middle)
        np.testing.assert_allclose(middle[:, 40], 1, rtol=1e-4)
        spectrogram.flush()
        assert spectrogram.seconds() == pytest.approx(1, abs=2 * window / rate_hz)


def test_any_cutting_gives_the_same_spectrogram() -> None:
    samples = RANDOM.normal(size=30000)
    images: list[Samples] = []
    for cuts in ([], [1, 2, 300, 301, 9999], range(0, 30000, 7)):
        spectrogram = Spectrogram(24000)
        for part in np.split(samples, list(cuts)):
            spectrogram.add(part)
        images.append(spectrogram.columns.image())
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])


def test_memory_is_flat_over_a_long_wav() -> None:
    waveform = Waveform()
    peek = WavPeek(lambda shown: None, lambda line: None, lambda line: None, [waveform])
    peek.push(header(rate_hz=8000))
    piece = s16(RANDOM.integers(-9999, 9999, 32768))
    for _ in range(40):
        peek.push(piece)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        peek.push(piece)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held - before < 1 << 20 and peak < 8 << 20
