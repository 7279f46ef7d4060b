"""Wire frames: what every `|` between two commands carries (vx-frame(5); formats.md section 8).

A frame is 8 bytes of header (magic, little-endian body length) and one msgpack map.  This module reads and
writes them and checks their form; what a sequence of frames means is `voxtral_pipes.stages.base`'s concern.
numpy is imported only when a tensor is turned into an array, so a command that reads token ids starts light.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import msgpack

from voxtral_pipes.errors import BadInputError, TruncatedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAGIC = b"\xc1VX1"
WAV_MAGIC = (b"RIFF", b"RF64")
"""What a WAV begins with: frames and audio come on the same kind of pipe and are told apart here."""
PROTOCOL = (1, 0)
HEADER = struct.Struct("<4sI")
MAX_FRAME_BYTES = 64 << 20
MAX_RANK = 8
MAX_ITEMS = 1 << 20
"""Array and map entries in one frame, nested ones included: 64 MiB of one-byte items would otherwise be 4 GB."""

ITEM_BYTES: Mapping[str, int] = {
    "f32": 4, "f16": 2, "bf16": 2, "f64": 8, "i8": 1, "u8": 1,
    "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "bool": 1,
}  # fmt: skip
_NUMPY_OF: Mapping[str, str] = {
    "f32": "<f4", "f16": "<f2", "bf16": "<u2", "f64": "<f8", "i8": "|i1", "u8": "|u1",
    "i16": "<i2", "u16": "<u2", "i32": "<i4", "u32": "<u4", "i64": "<i8", "bool": "|b1",
}  # fmt: skip
_WIRE_OF = {numpy: wire for wire, numpy in _NUMPY_OF.items() if wire != "bf16"}

KINDS = frozenset({"hello", "open", "data", "text", "mark", "end", "error"})
_CORE_KEYS = frozenset({"k", "s", "n", "t", "u", "x", "i", "c", "m", "!"})
_KNOWN_KEYS = _CORE_KEYS | {"v", "by", "chain", "out", "tb", "fb", "code", "msg", "fatal"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it travels: wire dtype, shape, and little-endian bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @classmethod
    def of(cls, array: npt.NDArray[Any], dtype: str | None = None) -> Tensor:
        """Wrap a numpy array; `dtype="bf16"` says that a uint16 array holds bfloat16 words."""
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        wire = dtype or _WIRE_OF[little.dtype.str]
        if ITEM_BYTES[wire] != little.dtype.itemsize:
            raise ValueError(f"an array of {little.dtype} cannot travel as {wire}")
        return cls(wire, array.shape, little.tobytes())

    def numpy(self) -> npt.NDArray[Any]:
        """Return a read-only view of the bytes; bf16 comes as uint16 words."""
        import numpy as np

        return np.frombuffer(self.data, dtype=_NUMPY_OF[self.dtype]).reshape(self.shape)

    def float32(self) -> npt.NDArray[np.float32]:
        """Return the values as float32, bf16 widened exactly; a view where the wire dtype is f32."""
        import numpy as np

        from voxtral_pipes.formats.bf16 import widen

        array = self.numpy()
        return widen(array) if self.dtype == "bf16" else array.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.  Field names are long here and short on the wire (`_WIRE_KEYS`)."""

    kind: str
    stream: int | None = None
    seq: int | None = None
    tick: int | None = None
    ticks: int | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    ids: list[int] | None = None
    text: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Keys outside the fixed core: those of hello and error, and unknown ones, kept for forwarding."""
    raw: bytes | None = None
    """The body as it came, for kinds this version does not know: they are forwarded byte for byte."""


def encode(frame: Frame) -> bytes:
    """Serialise a frame, header included."""
    body = frame.raw if frame.raw is not None else _body(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise BadInputError(
            f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}; send smaller pieces"
        )
    return HEADER.pack(MAGIC, len(body)) + body


def _body(frame: Frame) -> bytes:
    wire: dict[str, Any] = {"k": frame.kind}
    if frame.stream is not None:
        wire["s"] = frame.stream
    if frame.seq is not None:
        wire["n"] = frame.seq
    if frame.tick is not None:
        wire["t"] = frame.tick
    if frame.ticks is not None:
        wire["u"] = frame.ticks
    if frame.tensors:
        wire["x"] = {name: {"d": x.dtype, "h": x.shape, "b": x.data} for name, x in frame.tensors.items()}
    if frame.ids is not None:
        wire["i"] = frame.ids
    if frame.text is not None:
        wire["c"] = frame.text
    wire.update(frame.fields)
    if frame.meta:
        wire["m"] = dict(frame.meta)
    # A file name may hold bytes that are no UTF-8; an error message must not fail on them.
    packed: bytes = msgpack.packb(wire, use_bin_type=True, unicode_errors="replace")
    return packed


def decode(body: bytes) -> Frame:
    """Parse and check one frame body.

    Raises:
        BadInputError: if it is not one msgpack map of the form of formats.md section 8.2.
    """
    wire = _unpack(body)
    kind = wire.get("k")
    if not isinstance(kind, str):
        raise BadInputError("the frame has no kind ('k')")
    if "!" in wire:
        _check_must(wire["!"])
    stream = _integer(wire, "s", 0, 2**32 - 1)
    if kind not in KINDS:
        return Frame(kind, stream=stream, raw=body)
    meta = wire.get("m", {})
    if not isinstance(meta, dict):
        raise BadInputError(f"'m' of a {kind} frame is not a map")
    text = wire.get("c")
    if text is not None and not isinstance(text, str):
        raise BadInputError(f"'c' of a {kind} frame is not a string")
    return Frame(
        kind,
        stream=stream,
        seq=_integer(wire, "n", 0, 2**64 - 1),
        tick=_integer(wire, "t", -(2**63), 2**63 - 1),
        ticks=_integer(wire, "u", 0, 2**63 - 1),
        tensors=_tensors(wire.get("x", {})),
        ids=_ids(wire.get("i")),
        text=text,
        meta=meta,
        fields={key: value for key, value in wire.items() if key not in _CORE_KEYS or key == "!"},
    )


def _unpack(body: bytes) -> dict[str, Any]:
    try:
        # An item takes a byte at least: what is short cannot hold too many, and need not be counted.
        wire = _unpack_counting(body) if len(body) > MAX_ITEMS else msgpack.unpackb(body, **_STRICT)
    except (ValueError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise BadInputError(f"the frame is not valid msgpack ({_first_line(error)})") from error
    if not isinstance(wire, dict) or not set(map(type, wire)) <= {str}:
        raise BadInputError("the frame is not a msgpack map with string keys")
    return wire


_STRICT: Mapping[str, Any] = {"raw": False, "strict_map_key": True}


def _unpack_counting(body: bytes) -> Any:
    items = 0

    def count(container: Any) -> Any:
        nonlocal items
        items += len(container)
        if items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} items in one frame")
        return container

    return msgpack.unpackb(
        body, **_STRICT, object_hook=count, list_hook=count, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS
    )


def _first_line(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0][:120] if text else type(error).__name__


def _check_must(must: Any) -> None:
    if not isinstance(must, list) or not all(isinstance(key, str) for key in must):
        raise BadInputError("'!' of a frame is not a list of keys")
    unknown = [key for key in must if key not in _KNOWN_KEYS]
    if unknown:
        raise BadInputError(
            f"the frame needs a newer reader: key {unknown[0]!r} must be understood and is not"
        )


def _integer(wire: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    value = wire.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadInputError(
            f"{key!r} of a {wire['k']} frame is {value!r:.40}, not an integer of {low}..{high}"
        )
    return value


def _ids(value: Any) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**32 for i in value):
        raise BadInputError("'i' is not a list of token ids")
    return value


def _tensors(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise BadInputError("'x' is not a map of tensors")
    tensors = {}
    for name, entry in value.items():
        if not isinstance(entry, dict) or not {"d", "h", "b"} <= entry.keys():
            raise BadInputError(f"tensor {name!r} lacks dtype, shape or bytes")
        dtype, shape, data = entry["d"], entry["h"], entry["b"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise BadInputError(f"tensor {name!r} has the unknown dtype {dtype!r:.40}")
        if not isinstance(shape, list) or len(shape) > MAX_RANK:
            raise BadInputError(f"the shape of tensor {name!r} is not a list of at most {MAX_RANK} sizes")
        if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            raise BadInputError(f"the shape of tensor {name!r} holds something that is not a size")
        if not isinstance(data, bytes) or len(data) != prod(shape) * ITEM_BYTES[dtype]:
            held = len(data) if isinstance(data, bytes) else "no"
            raise BadInputError(f"tensor {name!r} of {dtype} {shape} holds {held} bytes")
        tensors[name] = Tensor(dtype, tuple(shape), data)
    return tensors


class ByteSource(Protocol):
    """Anything with a blocking `read(n)` that returns less than n bytes only at the end."""

    def read(self, size: int, /) -> bytes | None:
        """Return up to `size` bytes."""


class FrameReader:
    """Iterates over the frames of a byte source, reading never more than the frame asked for.

    Raises while iterating:
        BadInputError: the bytes are no frames (the message says what they look like), or a malformed frame.
        TruncatedError: the source ended inside a frame, or was empty.
    """

    def __init__(self, source: ByteSource, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._source = source
        self._max = max_frame_bytes
        self._offset = 0
        self._count = 0

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.read()) is not None:
            yield frame

    def read(self) -> Frame | None:
        """Return the next frame, or None where the source ends between two frames."""
        header = self._exactly(HEADER.size)
        if not header:
            if self._count == 0:
                raise TruncatedError("the input is empty: the command before this one wrote nothing")
            return None
        if not header.startswith(MAGIC[: len(header)]):
            raise BadInputError(self._diagnose(header))
        if len(header) < HEADER.size:
            raise self._truncated()
        length: int = HEADER.unpack(header)[1]
        if not 1 <= length <= self._max:
            raise BadInputError(f"{self._where()} declares {length} bytes; 1 to {self._max} are allowed")
        body = self._exactly(length)
        if len(body) < length:
            raise self._truncated()
        try:
            frame = decode(body)
        except BadInputError as error:
            raise BadInputError(f"{self._where()}: {error}") from error
        self._offset += HEADER.size + length
        self._count += 1
        return frame

    def _exactly(self, size: int) -> bytes:
        """Read `size` bytes, fewer only at the end; memory grows with what arrives, not with what is declared."""
        first = self._source.read(min(size, 1 << 20)) or b""
        if len(first) == size or not first:
            return first
        pieces = [first]
        got = len(first)
        while got < size:
            piece = self._source.read(min(size - got, 1 << 20))
            if not piece:
                break
            pieces.append(piece)
            got += len(piece)
        return b"".join(pieces)

    def _where(self) -> str:
        return f"frame {self._count} at byte {self._offset}"

    def _truncated(self) -> TruncatedError:
        return TruncatedError(f"the input ends inside {self._where()}: the command before this one died")

    def _diagnose(self, header: bytes) -> str:
        if self._count:
            return f"{self._where()} does not begin with the frame magic: the stream is corrupt"
        return f"the input is not a frame stream: {identify(header)}"


def identify(head: bytes) -> str:
    """Say what a stream that begins with `head` (one byte or more) seems to be, and what to do about it."""
    if head[:3] == MAGIC[:3] and len(head) > 3:
        return f"it is frames of protocol version {chr(head[3])!r}, this is version {chr(MAGIC[3])!r}"
    if head[:4] in WAV_MAGIC:
        return "it is a WAV file; put vx-mel before this command"
    if head[:4] == b"GGUF":
        return "it is a GGUF model file; name it with -m instead"
    if head[:4] == b"\x93NUM":
        return "it is a numpy file; frames are needed (vx-frame(5))"
    if head[0] & 0xF0 == 0x80 or head[0] in (0xDE, 0xDF):
        return "it looks like bare msgpack; frames need the header of vx-frame(5)"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"it looks like text ({head.decode('ascii')!r})"
    return f"it begins with the bytes {head.hex(' ')}"
