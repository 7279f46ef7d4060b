"""The bytes of a WAV: headers as players expect them, samples as they are rounded."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest

from voxtral_pipes.formats.wav import WavReader
from voxtral_pipes.formats.wav_writer import FORMATS, UNKNOWN, SoundFormat

# formats.md section 6.3, as written there.
PIPED = bytes.fromhex(
    "52 49 46 46 FF FF FF FF 57 41 56 45 66 6D 74 20 10 00 00 00 01 00 01 00 C0 5D 00 00 80 BB 00 00 02 00 10 00"
    "64 61 74 61 FF FF FF FF"
)
SAMPLES = np.array([0, 0.5, -0.5, 1, -1, 1.5, -7, 0.4 / 32767, 0.6 / 32767, -2.5 / 32767], np.float32)


def read(data: bytes) -> tuple[WavReader, np.ndarray]:
    reader = WavReader(None, pytest.fail)
    samples = reader.push(data)
    reader.finish()
    return reader, samples[:, 0]


def test_the_header_on_a_pipe() -> None:
    assert SoundFormat("wav", 24000).header() == PIPED
    assert SoundFormat("raw", 24000).header() == SoundFormat("raw", 24000).header(10) == b""


def test_the_header_of_floats_has_the_longer_form_and_the_number_of_samples() -> None:
    expected = (
        b"RIFF" + struct.pack("<I", 50 + 400) + b"WAVEfmt " + struct.pack("<IHHIIHHH", 18, 3, 1, 24000, 96000, 4, 32, 0)
        + b"fact" + struct.pack("<II", 4, 100) + b"data" + struct.pack("<I", 400)
    )  # fmt: skip
    form = SoundFormat("f32", 24000)
    assert form.header(400) == expected
    unknown = form.header()
    assert len(unknown) == len(expected)
    assert [struct.unpack_from("<I", unknown, at)[0] for at in (4, 46, 54)] == [UNKNOWN] * 3


def test_sizes_are_set_as_far_as_they_can_be() -> None:
    form = SoundFormat("wav", 24000)
    for data_bytes in (0, 2, 3840, UNKNOWN - 1 - 36 - 1):
        header = form.header(data_bytes)
        assert struct.unpack_from("<I", header, 4)[0] == data_bytes + 36
        assert struct.unpack_from("<I", header, 40)[0] == data_bytes
        assert header[8:40] == PIPED[8:40]
    for data_bytes in (UNKNOWN - 36, UNKNOWN, 1 << 33):
        assert form.header(data_bytes) == PIPED


def test_16_bits_are_clipped_and_rounded_to_nearest() -> None:
    for name in ("wav", "raw"):
        values = np.frombuffer(SoundFormat(name, 24000).encode(SAMPLES), "<i2")
        assert values.tolist() == [0, 16384, -16384, 32767, -32767, 32767, -32767, 0, 1, -2]


def test_floats_are_as_they_are() -> None:
    form = SoundFormat("f32", 24000)
    data = form.encode(SAMPLES[None])
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), SAMPLES)
    reader, samples = read(form.header(len(data)) + data)
    assert (reader.rate_hz, reader.channels) == (24000, 1)
    np.testing.assert_array_equal(samples, SAMPLES)


@pytest.mark.parametrize("known", [True, False])
def test_others_read_it(known: bool) -> None:
    form = SoundFormat("wav", 24000)
    data = form.encode(SAMPLES)
    whole = form.header(len(data) if known else None) + data
    _, samples = read(whole)
    np.testing.assert_allclose(samples, np.clip(SAMPLES, -1, 1), atol=1 / 32767)
    with wave.open(io.BytesIO(whole)) as theirs:
        assert theirs.getparams()[:3] == (1, 2, 24000)
        assert theirs.readframes(len(SAMPLES)) == data


def test_names_and_widths() -> None:
    forms = [SoundFormat(name, 8000) for name in FORMATS]
    assert [form.suffix for form in forms] == [".wav", ".raw", ".wav"]
    assert [form.sample_bytes for form in forms] == [2, 2, 4]
    assert all(len(form.encode(SAMPLES)) == form.sample_bytes * len(SAMPLES) for form in forms)
