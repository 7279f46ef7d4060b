"""WAV files made by hand, the headers that recorders really send, and what the reader makes of them."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.wav import PcmFormat, Samples, WavReader

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
