"""Samples as the bytes of a WAV, or of headerless PCM (formats.md section 6.3).

Nothing is written here.  On a pipe the sizes of a WAV are not known when its header goes out: it says the largest
number, which every player takes as "until the end".  numpy is imported only when samples are encoded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FORMATS = ("wav", "raw", "f32")
"""WAV of 16-bit integers, the same without a header, WAV of 32-bit floats."""
UNKNOWN = 0xFFFFFFFF
_PCM, _FLOAT = 1, 3


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """How mono samples are written."""

    name: str
    """One of `FORMATS`."""
    rate_hz: int

    @property
    def suffix(self) -> str:
        """End of a file's name."""
        return ".raw" if self.name == "raw" else ".wav"

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return 4 if self.name == "f32" else 2

    def header(self, data_bytes: int | None = None) -> bytes:
        """Make what goes before `data_bytes` of samples; None, or more than the fields can say: unknown.

        Samples have 2 or 4 bytes, so `data` needs no byte of padding.
        """
        if self.name == "raw":
            return b""
        width, rate = self.sample_bytes, self.rate_hz
        form = struct.pack("<HHIIHH", _PCM, 1, rate, width * rate, width, 8 * width)
        chunks = b""
        if self.name == "f32":  # readers want the longer form, and the number of samples, of what is not PCM
            form = struct.pack("<H", _FLOAT) + form[2:] + struct.pack("<H", 0)
            chunks = struct.pack("<4sII", b"fact", 4, UNKNOWN if data_bytes is None else data_bytes // width)
        chunks = struct.pack("<4sI", b"fmt ", len(form)) + form + chunks
        riff_bytes = 4 + len(chunks) + 8 + (data_bytes or 0)
        if data_bytes is not None and riff_bytes >= UNKNOWN:
            return self.header()
        if data_bytes is None:
            riff_bytes = data_bytes = UNKNOWN
        start = struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE")
        return start + chunks + struct.pack("<4sI", b"data", data_bytes)

    def encode(self, samples: npt.NDArray[np.float32]) -> bytes:
        """Turn float32 samples of nominal range [-1, 1] into bytes; 16 bits are clipped and rounded to nearest."""
        import numpy as np

        if self.name == "f32":
            return samples.astype("<f4", copy=False).tobytes()
        words: npt.NDArray[np.int16] = np.rint(np.clip(samples, -1, 1) * np.float32(32767)).astype("<i2")
        return words.tobytes()
