"""WAV and headerless PCM as a push parser: bytes in, float32 samples out (formats.md section 6.2).

No descriptor is read here, so any cutting of the bytes gives the same samples, and memory is bounded by the
piece that was pushed: nothing a header declares is ever allocated.  What the size fields say is advisory,
because writers on a pipe do not know it.  Carried between calls: part of a sample frame or of a chunk header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadInputError, UsageError
from voxtral_pipes.formats.frame import MAGIC, WAV_MAGIC, identify

Samples = npt.NDArray[np.float32]

MAX_CHUNK_BYTES = 16 << 20
"""Largest chunk that is skipped on the way to the samples, or after them."""
MAX_CHANNELS = 32
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 768000
UNKNOWN_SIZE = 0x7FFFF000
"""Declared data sizes from here on, and 0, mean "until the end of the input": sox writes this one, arecord
0x80000000, ffmpeg 0xFFFFFFFF."""
ARECORD_SIZE = 0x80000000
ARECORD_LIMIT_BYTES = 1 << 31
"""arecord ends a WAV of unknown length after exactly so many bytes of samples, with status 0."""

PCM, FLOAT, ALAW, MULAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
ENCODING_BYTES = {
    "u8": 1, "s16": 2, "s24": 3, "s24-32": 4, "s32": 4, "f32": 4, "f64": 8, "alaw": 1, "mulaw": 1,
}  # fmt: skip
"""Bytes of one sample; "s24-32" has its 24 bits in the low three bytes of four (ALSA's S24_LE)."""
_RAW_NAMES = {
    "u8": "u8", "s16le": "s16", "s24le": "s24", "s24-32le": "s24-32", "s32le": "s32",
    "f32le": "f32", "f64le": "f64", "alaw": "alaw", "mulaw": "mulaw",
}  # fmt: skip
_PLAIN = {
    (PCM, 8, 1): "u8", (PCM, 16, 2): "s16", (PCM, 24, 3): "s24", (PCM, 24, 4): "s24-32", (PCM, 32, 4): "s32",
    (FLOAT, 32, 4): "f32", (FLOAT, 64, 8): "f64", (ALAW, 8, 1): "alaw", (MULAW, 8, 1): "mulaw",
}  # fmt: skip
# Samples of an extensible format fill their container from the top, whatever number of bits is valid.
_BY_CONTAINER = {
    (PCM, 1): "u8", (PCM, 2): "s16", (PCM, 3): "s24", (PCM, 4): "s32",
    (FLOAT, 4): "f32", (FLOAT, 8): "f64", (ALAW, 1): "alaw", (MULAW, 1): "mulaw",
}  # fmt: skip
_FOREIGN = {
    b"RIFX": "a big-endian WAV", b".snd": "an AU file", b"FORM": "an AIFF file", b"riff": "a Wave64 file",
    b".SoX": "sox's native format", b"XoS.": "sox's native format", b"fLaC": "a FLAC file",
    b"OggS": "an Ogg file", b"caff": "a CAF file", b"\x1aE\xdf\xa3": "a Matroska or WebM file",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Advice:
    """How messages go on for the user of one command: what to do about it, or nothing."""

    convert: str
    """With what cannot be read."""
    several: str = ""
    """With a second WAV behind the first."""
    longer: str = ""
    """With a recording that arecord has ended by itself."""
    telephone: str | None = None
    """With samples of arecord's default format; None where they are as good as any."""


RECOGNITION = Advice(
    convert="; convert it: ffmpeg -i INPUT -f wav - | vx-mel",
    several="; name several files as arguments instead",
    longer="; to record longer use arecord -t raw and vx-mel --raw",
    telephone="; arecord -f S16_LE -r 16000 is recognised better",
)


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """How the bytes of samples are to be read."""

    encoding: str
    """One of `ENCODING_BYTES`; little-endian."""
    rate_hz: int
    channels: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return ENCODING_BYTES[self.encoding] * self.channels


def parse_raw(text: str) -> PcmFormat:
    """Parse what `--raw` takes, for example "s16le:16000:1".

    Raises:
        UsageError: not ENCODING:RATE:CHANNELS, or a value that is not supported.
    """
    name, *numbers = text.split(":")
    if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise UsageError(f"--raw {text!r:.40}: want FORMAT:RATE:CHANNELS, for example s16le:16000:1")
    if name not in _RAW_NAMES:
        raise UsageError(
            f"--raw {text!r:.40}: unknown format {name!r:.20}; there are {', '.join(_RAW_NAMES)}"
        )
    rate_hz, channels = (int(number[:9]) for number in numbers)
    if problem := _out_of_bounds(rate_hz, channels):
        raise UsageError(f"--raw {text!r:.40}: {problem}")
    return PcmFormat(_RAW_NAMES[name], rate_hz, channels)


def _out_of_bounds(rate_hz: int, channels: int) -> str | None:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        return f"a rate of {rate_hz} Hz is outside {MIN_RATE_HZ}..{MAX_RATE_HZ} Hz"
    if not 1 <= channels <= MAX_CHANNELS:
        return f"{channels} channels are outside 1..{MAX_CHANNELS}"
    return None


def decode(block: bytes, encoding: str) -> Samples:
    """Turn whole samples into float32 of nominal range [-1, 1); float input is passed as it is, unclipped.

    `block` holds a whole number of samples; the result is float32 [len(block) / bytes of a sample].
    """
    if encoding == "u8":
        return (np.frombuffer(block, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if encoding in _G711:
        return _G711[encoding][np.frombuffer(block, np.uint8)]
    if encoding == "s16":
        return np.frombuffer(block, "<i2").astype(np.float32) / np.float32(2**15)
    if encoding == "s24":
        wide = np.zeros((len(block) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(block, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    if encoding == "s24-32":
        return (np.frombuffer(block, "<i4") << 8).astype(np.float32) / np.float32(2**31)
    if encoding == "s32":
        return np.frombuffer(block, "<i4").astype(np.float32) / np.float32(2**31)
    # What float32 cannot hold becomes infinite or NaN, and the reader deals with that.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(block, {"f32": "<f4", "f64": "<f8"}[encoding]).astype(np.float32)


def _mulaw_table() -> Samples:
    code = ~np.arange(256) & 0xFF
    magnitude = ((((code & 15) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 2**15).astype(np.float32)


def _alaw_table() -> Samples:
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, (code & 15) << 4
    magnitude = np.where(exponent == 0, mantissa + 8, (mantissa + 0x108) << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, magnitude, -magnitude) / 2**15).astype(np.float32)


# ITU-T G.711 as 16-bit values, the usual scaling of 13 and 14 bits.
_G711 = {"alaw": _alaw_table(), "mulaw": _mulaw_table()}


def parse_fmt(body: bytes, convert: str = RECOGNITION.convert) -> PcmFormat:
    """Parse the first 40 bytes, or all if there are fewer, of a `fmt ` chunk; `convert` ends every message.

    Raises:
        BadInputError: too short, contradictory, out of bounds, or a coding that is not supported.
    """
    if len(body) < 16:
        raise BadInputError(f"the WAV 'fmt ' chunk has {len(body)} bytes, 16 are needed{convert}")
    tag, channels, rate_hz, _, align, bits = struct.unpack_from("<HHIIHH", body)
    if problem := _out_of_bounds(rate_hz, channels):
        raise BadInputError(f"the WAV header is not usable: {problem}{convert}")
    container, rest = divmod(align, channels)
    if rest or not container:
        raise BadInputError(
            f"the WAV header contradicts itself: {channels} channels in {align} bytes{convert}"
        )
    if tag == EXTENSIBLE:
        if len(body) < 40:
            raise BadInputError(f"the extensible WAV 'fmt ' chunk has {len(body)} of 40 bytes{convert}")
        valid, tag = struct.unpack_from("<H4xH", body, 18)
        fits = max(bits, valid) <= 8 * container
        encoding = _BY_CONTAINER.get((tag, container)) if fits else None
    else:
        encoding = _PLAIN.get((tag, bits, container))
    if encoding is None:
        raise BadInputError(
            f"WAV format tag 0x{tag:04X}, {bits} bits in {container} bytes, is not supported{convert}"
        )
    return PcmFormat(encoding, rate_hz, channels)


class WavReader:
    """The samples of one WAV, or of headerless PCM if `raw` says how to read it.

    `warn` gets one line for what the user should know although work goes on.
    """

    def __init__(
        self, raw: PcmFormat | None, warn: Callable[[str], None], advice: Advice = RECOGNITION
    ) -> None:
        self._format = raw
        self._warn = warn
        self._advice = advice
        self._pending = bytearray()
        self._skip = 0
        self._raw = raw is not None
        self._step = self._data if self._raw else self._magic
        self._out: list[Samples] = []
        self._received = 0
        self._data_bytes = 0
        self._declared: int | None = 0 if raw is None else None
        self._unknown_as = 0
        self._ds64: int | None = None
        self._warned_values = False
        self._ended = self._done = False

    @property
    def format(self) -> PcmFormat | None:
        """How the samples are read; None until the header has come."""
        return self._format if self.ready else None

    @property
    def ready(self) -> bool:
        """True once the header is complete, whether or not a sample has come."""
        return self._step not in (self._magic, self._chunk)

    @property
    def rate_hz(self) -> int:
        """Sample frames per second; 0 until the header has come."""
        return self._format.rate_hz if self._format else 0

    @property
    def channels(self) -> int:
        """Number of channels; 0 until the header has come."""
        return self._format.channels if self._format else 0

    @property
    def declared_frames(self) -> int | None:
        """Sample frames that the header declares; None where its writer did not know, or it has not come."""
        if self._format is None or not self.ready or self._declared is None:
            return None
        return self._declared // self._format.frame_bytes

    @property
    def ended(self) -> bool:
        """True once the declared end is reached: there will be no more samples."""
        return self._ended

    @property
    def done(self) -> bool:
        """True once nothing that may follow is of interest, so that reading can stop."""
        return self._done

    def push(self, data: bytes) -> Samples:
        """Take the next bytes, give the samples they complete: float32 [n, channels].

        Raises:
            BadInputError: the input is no WAV, or one that cannot be read; the message says what to do.
        """
        self._received += len(data)
        self._pending += data
        while self._skip_ahead() and self._step():
            pass
        out, self._out = self._out, []
        if not out:
            return np.empty((0, self.channels), np.float32)
        return out[0] if len(out) == 1 else np.concatenate(out)

    def finish(self) -> None:
        """Check how the input ended; call it once, after the last push.

        Raises:
            BadInputError: there was nothing, or it ended inside the header.
        """
        if not self._received:
            raise BadInputError(
                "no audio: the input is empty"
                + ("" if self._raw else "; pipe in a WAV, or bare samples with --raw")
            )
        if self._format is None or not self.ready:
            head = bytes(self._pending[:4])
            if self._step == self._magic and not any(magic.startswith(head) for magic in WAV_MAGIC):
                raise BadInputError(_not_wav(head, self._advice.convert))
            raise BadInputError(
                f"the input ends inside the WAV header, after {self._received} bytes and before any samples"
            )
        if self._ended:
            return
        if self._pending:
            self._warn(f"the last {len(self._pending)} bytes are no whole sample and are dropped")
        if self._declared is not None:
            rate = self._format.frame_bytes * self._format.rate_hz
            got, declared = self._data_bytes / rate, self._declared / rate
            self._warn(f"the input ends early: {got:.2f} s of {declared:.2f} s declared")
        elif self._unknown_as == ARECORD_SIZE and self._data_bytes == ARECORD_LIMIT_BYTES:
            self._warn(
                "the input ends after exactly 2 GiB of samples, where arecord stops writing WAV"
                + self._advice.longer
            )

    def _skip_ahead(self) -> bool:
        if self._skip:
            dropped = min(self._skip, len(self._pending))
            del self._pending[:dropped]
            self._skip -= dropped
        return not self._skip

    # Each of the steps below consumes what it can and tells whether another step may be possible.

    def _magic(self) -> bool:
        head = bytes(self._pending[:12])
        if len(head) >= 4 and head[:4] not in WAV_MAGIC:
            raise BadInputError(_not_wav(head[:4], self._advice.convert))
        if len(head) < 12:
            return False
        if head[8:] != b"WAVE":
            raise BadInputError(f"the input is RIFF of the form {head[8:]!r}, not WAVE{self._advice.convert}")
        del self._pending[:12]
        self._step = self._chunk
        return True

    def _chunk(self) -> bool:
        if len(self._pending) < 8:
            return False
        name, size = struct.unpack_from("<4sI", self._pending)
        if name == b"data":
            self._begin_data(size)
            return True
        if not _printable(name):
            raise BadInputError(
                f"the WAV header is corrupt: a chunk named {name!r} after {self._where()} bytes"
            )
        if size > MAX_CHUNK_BYTES:
            raise BadInputError(
                f"the WAV header declares a chunk {name!r} of {size} bytes; {MAX_CHUNK_BYTES} is the limit"
            )
        wanted = min(size, {b"fmt ": 40, b"ds64": 28}.get(name, 0))
        if len(self._pending) < 8 + wanted:
            return False
        body = bytes(self._pending[8 : 8 + wanted])
        if name == b"fmt ":
            self._format = parse_fmt(body, self._advice.convert)
        elif name == b"ds64":
            if len(body) < 16:
                raise BadInputError(
                    f"the WAV 'ds64' chunk has {len(body)} bytes, 28 are needed{self._advice.convert}"
                )
            self._ds64 = struct.unpack_from("<Q", body, 8)[0]
        self._skip = 8 + size + (size & 1)
        return True

    def _begin_data(self, size: int) -> None:
        if self._format is None:
            raise BadInputError(
                f"the WAV has its samples before their format ('fmt ' chunk){self._advice.convert}"
            )
        del self._pending[:8]
        self._unknown_as = size
        if size == 0xFFFFFFFF and self._ds64:
            self._declared = self._ds64
        else:
            self._declared = None if size == 0 or size >= UNKNOWN_SIZE else size
        telephone = self._format.encoding == "u8" and self._format.rate_hz == 8000
        if telephone and self._advice.telephone is not None:
            self._warn(
                "8-bit samples at 8000 Hz are of telephone quality, and arecord's default"
                + self._advice.telephone
            )
        self._step = self._data

    def _data(self) -> bool:
        assert self._format is not None
        frame_bytes = self._format.frame_bytes
        held = len(self._pending)
        if self._declared is not None:
            held = min(held, self._declared - self._data_bytes)
        whole = held - held % frame_bytes
        if whole:
            samples = decode(bytes(self._pending[:whole]), self._format.encoding)
            self._out.append(self._finite(samples).reshape(-1, self._format.channels))
            del self._pending[:whole]
            self._data_bytes += whole
        if self._declared is None or self._declared - self._data_bytes >= frame_bytes:
            return False
        rest = self._declared - self._data_bytes
        if rest:
            self._warn(f"the last {rest} bytes are no whole sample and are dropped")
        self._skip = rest + (self._declared & 1)
        self._ended = True
        self._step = self._trailer
        return True

    def _finite(self, samples: Samples) -> Samples:
        finite = np.isfinite(samples)
        if finite.all():
            return samples
        if not self._warned_values:
            self._warned_values = True
            self._warn("some samples are not finite numbers (NaN, infinite) and are taken as 0")
        return np.where(finite, samples, np.float32(0))

    def _trailer(self) -> bool:
        if bytes(self._pending[:4]) in WAV_MAGIC:
            self._warn("another WAV follows the first and is not read" + self._advice.several)
            self._step = self._ignore
            return True
        if len(self._pending) < 8:
            return False
        name, size = struct.unpack_from("<4sI", self._pending)
        if size > MAX_CHUNK_BYTES or not _printable(name):
            self._warn("what follows the declared end of the WAV is not read")
            self._step = self._ignore
            return True
        self._skip = 8 + size + (size & 1)
        return True

    def _ignore(self) -> bool:
        self._done = True
        self._pending.clear()
        return False

    def _where(self) -> int:
        return self._received - len(self._pending)


def _printable(name: bytes) -> bool:
    return all(32 <= byte < 127 for byte in name)


def _not_wav(head: bytes, convert: str) -> str:
    if head[:3] == MAGIC[:3]:
        return "the input is already a frame stream, and this command reads audio: it comes first in the pipe"
    foreign = _FOREIGN.get(head[:4])
    # FF FF would be a sync word too, of a layer nobody uses, and is how quiet bare samples look.
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and b"\xe0" <= head[1:2] < b"\xff"):
        foreign = "MP3 or AAC"
    if foreign:
        return f"the input is {foreign}, not a WAV{convert}"
    return f"the input is not a WAV: {identify(head)}; if it is bare samples say so: --raw s16le:16000:1"
