"""Ogg streams that are the same each time: an encoder draws the serial number of its stream."""

from __future__ import annotations

import zlib

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def with_serial(stream: bytes, serial: int) -> bytes:
    """Return an Ogg stream with another serial number, and the checksums that go with it.

    Raises:
        ValueError: it is no whole number of Ogg pages.
    """
    data = bytearray(stream)
    at = 0
    while at < len(data):
        if data[at : at + 4] != b"OggS" or at + 27 > len(data):
            raise ValueError(f"no Ogg page at {at}")
        table = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + len(table) + sum(table)
        if end > len(data):
            raise ValueError(f"the Ogg page at {at} is cut")
        data[at + 14 : at + 18] = serial.to_bytes(4, "little")
        data[at + 22 : at + 26] = bytes(4)
        data[at + 22 : at + 26] = _checksum(bytes(data[at:end])).to_bytes(4, "little")
        at = end
    return bytes(data)


def _checksum(page: bytes) -> int:
    """Compute Ogg's CRC-32, which takes bits the other way round than that of zlib, and does not invert."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
