"""Wire frames: golden bytes, round trips, and every way a frame can be malformed."""

from __future__ import annotations

import io
import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtral_pipes.errors import BadInputError, TruncatedError
from voxtral_pipes.formats.frame import (
    ITEM_BYTES,
    KINDS,
    MAGIC,
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    Frame,
    FrameReader,
    Tensor,
    decode,
    encode,
    identify,
)

MEL_FRAME = bytes.fromhex(
    "c1 56 58 31  42 00 00 00  85"
    "a1 6b a4 64 61 74 61  a1 73 07  a1 6e 03  a1 74 cd 0f 00  a1 78 81"
    "a3 6d 65 6c 83  a1 64 a3 66 33 32  a1 68 92 02 03  a1 62 c4 18"
    "00000000 0000803f 000080bf 0000003f 00000040 000000c0"
)
END_FRAME = bytes.fromhex("c1 56 58 31 0d 00 00 00 83 a1 6b a3 65 6e 64 a1 73 07 a1 6e 04")
VALUES = np.array([[0, 1, -1], [0.5, 2, -2]], np.float32)


def framed(body: bytes, length: int | None = None, magic: bytes = MAGIC) -> bytes:
    return magic + struct.pack("<I", len(body) if length is None else length) + body


def body_of(wire: Any) -> bytes:
    packed: bytes = msgpack.packb(wire, use_bin_type=True)
    return packed


def tensor(**changes: Any) -> dict[str, Any]:
    return {"k": "data", "s": 0, "x": {"mel": {"d": "f32", "h": [1], "b": bytes(4), **changes}}}


def read_all(data: bytes) -> list[Frame]:
    return list(FrameReader(io.BytesIO(data)))


class Dribble:
    """A source that gives one byte at a time and remembers how much it was asked to give."""

    def __init__(self, data: bytes) -> None:
        self._source = io.BytesIO(data)
        self.given = 0

    def read(self, size: int, /) -> bytes:
        piece = self._source.read(min(size, 1))
        self.given += len(piece)
        return piece


def test_golden_bytes_are_written() -> None:
    assert encode(Frame("data", 7, 3, 3840, tensors={"mel": Tensor.of(VALUES)})) == MEL_FRAME
    assert encode(Frame("end", 7, 4)) == END_FRAME


def test_golden_bytes_are_read() -> None:
    data, end = read_all(MEL_FRAME + END_FRAME)
    assert (data.kind, data.stream, data.seq, data.tick, data.ticks) == ("data", 7, 3, 3840, None)
    assert data.tensors["mel"].dtype == "f32"
    np.testing.assert_array_equal(data.tensors["mel"].numpy(), VALUES)
    assert (end.kind, end.stream, end.seq) == ("end", 7, 4)


texts = st.text(max_size=8)
metas = st.dictionaries(
    texts, st.integers(-(2**63), 2**64 - 1) | texts | st.booleans() | st.none(), max_size=3
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    size = int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype]
    return Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    return Frame(
        draw(st.sampled_from(sorted(KINDS))),
        stream=draw(st.none() | st.integers(0, 2**32 - 1)),
        seq=draw(st.none() | st.integers(0, 2**64 - 1)),
        tick=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        ticks=draw(st.none() | st.integers(0, 2**63 - 1)),
        tensors=draw(st.dictionaries(texts, tensors(), max_size=2)),
        ids=draw(st.none() | st.lists(st.integers(0, 2**32 - 1), max_size=5)),
        text=draw(st.none() | texts),
        meta=draw(metas),
        fields=draw(st.dictionaries(st.sampled_from(["v", "by", "code", "later"]), texts, max_size=2)),
    )


@settings(deadline=None, max_examples=150)
@given(st.lists(frames(), max_size=4))
def test_round_trip(sent: list[Frame]) -> None:
    data = b"".join(map(encode, sent))
    if not data:
        return
    assert read_all(data) == sent
    assert list(FrameReader(Dribble(data))) == sent


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=64))
def test_no_body_does_anything_but_parse_or_be_refused(body: bytes) -> None:
    try:
        decode(body)
    except BadInputError as error:
        assert "\n" not in str(error)


@settings(deadline=None, max_examples=200)
@given(st.integers(8, len(MEL_FRAME) - 1), st.integers(0, 255))
def test_one_damaged_byte_is_refused_or_read(where: int, byte: int) -> None:
    damaged = MEL_FRAME[:where] + bytes([byte]) + MEL_FRAME[where + 1 :]
    try:
        read_all(damaged)
    except BadInputError as error:
        assert "frame 0 at byte 0" in str(error)


@pytest.mark.parametrize("dtype", sorted(set(ITEM_BYTES) - {"bf16"}))
def test_numpy_round_trip(dtype: str) -> None:
    names = {"f": "float", "i": "int", "u": "uint"}
    name = "bool" if dtype == "bool" else names[dtype[0]] + dtype[1:]
    array = np.arange(6).reshape(2, 3).astype(name)
    sent = Tensor.of(array)
    assert sent.dtype == dtype
    back = sent.numpy()
    assert back.dtype == array.dtype and not back.flags.writeable
    np.testing.assert_array_equal(back, array)


def test_arrays_of_any_layout_travel_in_c_order_little_endian() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    sent = Tensor.of(array)
    assert (sent.dtype, sent.shape) == ("i32", (3, 2))
    assert bytes(sent.data) == struct.pack("<6i", 0, 3, 1, 4, 2, 5)


def test_bf16_is_widened_exactly() -> None:
    words = np.array([0x3F80, 0xC000, 0x0001, 0x7F80], np.uint16)
    sent = Tensor.of(words, "bf16")
    expected = np.array([0x3F800000, 0xC0000000, 0x00010000, 0x7F800000], np.uint32).view(np.float32)
    np.testing.assert_array_equal(sent.float32(), expected)
    assert Tensor.of(VALUES).float32().dtype == np.float32


def test_a_dtype_of_another_width_is_not_written() -> None:
    with pytest.raises(ValueError, match="cannot travel as bf16"):
        Tensor.of(VALUES, "bf16")


def test_zero_size_and_scalar_tensors() -> None:
    for shape in ((0, 128), ()):
        sent = Frame("data", 0, 0, tensors={"mel": Tensor.of(np.zeros(shape, np.float32))})
        assert read_all(encode(sent))[0].tensors["mel"].shape == shape


MALFORMED = {
    "not a map": (body_of([1, 2]), "not a msgpack map"),
    "a number": (b"\x07", "not a msgpack map"),
    "nil": (b"\xc0", "not a msgpack map"),
    "no kind": (body_of({"s": 1}), "no kind"),
    "kind is a number": (body_of({"k": 3}), "no kind"),
    "integer keys": (body_of({"k": "data", 5: 1}), "not valid msgpack"),
    "bytes for a key": (b"\x81\xc4\x01k\xa4data", "string keys"),
    "never used byte": (b"\xc1", "not valid msgpack"),
    "half a map": (b"\x82\xa1k", "not valid msgpack"),
    "trailing bytes": (body_of({"k": "end"}) + b"\x00", "not valid msgpack"),
    "bad UTF-8": (b"\x81\xa1k\xa1\xff", "not valid msgpack"),
    "huge array declared": (b"\x82\xa1k\xa4data\xa1i\xdd\xff\xff\xff\xff", "not valid msgpack"),
    "huge map declared": (b"\xdf\xff\xff\xff\xff", "not valid msgpack"),
    "nested arrays": (b"\x81\xa1k" + b"\x91" * 5000 + b"\xc0", "not valid msgpack"),
    "nested maps": (b"\x81\xa1k" + b"\x81\xa1a" * 5000 + b"\xc0", "not valid msgpack"),
    "negative stream": (body_of({"k": "data", "s": -1}), "'s' of a data frame is -1"),
    "huge stream": (body_of({"k": "data", "s": 2**32}), "'s'"),
    "bool stream": (body_of({"k": "data", "s": True}), "'s' of a data frame is True"),
    "float tick": (body_of({"k": "data", "t": 1.5}), "'t'"),
    "negative sequence": (body_of({"k": "data", "n": -1}), "'n'"),
    "bool sequence": (body_of({"k": "data", "n": False}), "'n'"),
    "negative duration": (body_of({"k": "data", "u": -1}), "'u'"),
    "stream is text": (body_of({"k": "mystery", "s": "x"}), "'s'"),
    "ids are a map": (body_of({"k": "data", "i": {}}), "'i'"),
    "negative id": (body_of({"k": "data", "i": [1, -1]}), "'i'"),
    "bool id": (body_of({"k": "data", "i": [True]}), "'i'"),
    "float id": (body_of({"k": "data", "i": [1.0]}), "'i'"),
    "huge id": (body_of({"k": "data", "i": [2**32]}), "'i'"),
    "text is bytes": (body_of({"k": "text", "c": b"abc"}), "'c'"),
    "meta is a list": (body_of({"k": "open", "m": []}), "'m'"),
    "tensors are a list": (body_of({"k": "data", "x": []}), "'x'"),
    "tensor is bytes": (body_of({"k": "data", "x": {"mel": b""}}), "lacks"),
    "tensor lacks bytes": (body_of({"k": "data", "x": {"mel": {"d": "f32", "h": [0]}}}), "lacks"),
    "unknown dtype": (body_of(tensor(d="f8")), "unknown dtype 'f8'"),
    "dtype is a list": (body_of(tensor(d=["f32"])), "unknown dtype"),
    "too few bytes": (body_of(tensor(b=bytes(3))), "holds 3 bytes"),
    "too many bytes": (body_of(tensor(b=bytes(8))), "holds 8 bytes"),
    "bytes are text": (body_of(tensor(b="abcd")), "holds no bytes"),
    "rank 9": (body_of(tensor(h=[1] * 9)), "at most 8"),
    "shape is a number": (body_of(tensor(h=1)), "at most 8"),
    "negative size": (body_of(tensor(h=[-1])), "not a size"),
    "two negative sizes": (body_of(tensor(h=[-1, -1])), "not a size"),
    "bool size": (body_of(tensor(h=[True])), "not a size"),
    "sizes that overflow": (body_of(tensor(h=[2**62, 4], b=b"")), "holds 0 bytes"),
    "must is a string": (body_of({"k": "data", "!": "zip"}), "'!'"),
    "must holds a number": (body_of({"k": "data", "!": [3]}), "'!'"),
    "must is unknown": (
        body_of({"k": "data", "!": ["s", "zip"], "zip": 1}),
        "needs a newer reader: key 'zip'",
    ),
    "must of an unknown kind": (body_of({"k": "mystery", "!": ["zip"]}), "needs a newer reader"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies_are_refused_by_position(name: str) -> None:
    body, message = MALFORMED[name]
    reader = FrameReader(io.BytesIO(END_FRAME + framed(body)))
    assert reader.read() is not None
    with pytest.raises(BadInputError) as caught:
        reader.read()
    assert message in str(caught.value)
    assert f"frame 1 at byte {len(END_FRAME)}" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_lengths_out_of_bounds_are_refused_before_reading(length: int) -> None:
    source = Dribble(framed(b"x" * 100, length))
    with pytest.raises(BadInputError, match=f"frame 0 at byte 0 declares {length} bytes"):
        FrameReader(source).read()
    assert source.given == 8


def test_a_declared_length_allocates_nothing_by_itself() -> None:
    data = framed(b"x" * 100, MAX_FRAME_BYTES)
    tracemalloc.start()
    with pytest.raises(TruncatedError):
        read_all(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("cut", range(1, len(MEL_FRAME)))
def test_truncation_is_told_from_an_end(cut: int) -> None:
    for before in (b"", END_FRAME):
        with pytest.raises(TruncatedError, match="inside frame"):
            read_all(before + MEL_FRAME[:cut])


def test_no_bytes_at_all() -> None:
    with pytest.raises(TruncatedError, match="empty"):
        FrameReader(io.BytesIO(b"")).read()


def test_an_end_between_frames_is_none() -> None:
    reader = FrameReader(io.BytesIO(END_FRAME))
    assert reader.read() is not None
    assert reader.read() is None


@pytest.mark.parametrize("head", [b"RIFF0000", b"\xc1VX2\x01\x00\x00\x00", b"\x00" * 8, b"\x00"])
def test_wrong_magic_later_is_corruption(head: bytes) -> None:
    with pytest.raises(BadInputError, match="frame 1 at byte 21 does not begin with the frame magic"):
        read_all(END_FRAME + head)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"RIFF\x00\x00\x00\x00", "WAV file; put vx-mel before"),
        (b"RF64\xff\xff\xff\xff", "WAV file; put vx-mel before"),
        (b"GGUF\x03\x00\x00\x00", "GGUF model file; name it with -m"),
        (b"\x93NUMPY\x01\x00", "numpy file"),
        (b"\x83\xa1k\xa3end\xa1", "bare msgpack"),
        (b"\xde\x00\x10\xa1k\xa3en", "bare msgpack"),
        (b"\xdf\x00\x00\x00\x10\xa1k\xa3", "bare msgpack"),
        (b"hello world", "looks like text"),
        (b"hi\n", "looks like text"),
        (b"\xc1VX2\x01\x00\x00\x00", "protocol version '2', this is version '1'"),
        (b"\xc1VX", "the input ends inside frame 0"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07", "begins with the bytes 00 01 02 03"),
        (b"\xff", "begins with the bytes ff"),
    ],
)
def test_first_bytes_are_diagnosed(head: bytes, told: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_all(head)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", range(1, 8))
def test_identify_takes_any_number_of_bytes(length: int) -> None:
    for first in range(256):
        assert identify(bytes([first]) * length)
    assert identify(MAGIC[:length])


def test_unknown_kinds_are_forwarded_byte_for_byte() -> None:
    # Neither canonical msgpack (a 32-bit length for "k") nor of the form that known kinds must have.
    body = b"\x83\xdb\x00\x00\x00\x01k\xa5later\xa1s\x05\xa1x\x93\x01\x02\x03"
    frame = read_all(framed(body))[0]
    assert (frame.kind, frame.stream) == ("later", 5)
    assert encode(frame) == framed(body)


def test_unknown_keys_of_known_kinds_are_kept() -> None:
    wire = {"k": "data", "s": 1, "n": 0, "later": {"a": [1]}, "!": ["n"]}
    frame = decode(body_of(wire))
    assert frame.fields == {"later": {"a": [1]}, "!": ["n"]}
    assert msgpack.unpackb(encode(frame)[8:]) == wire


def test_must_keys_that_are_understood_pass() -> None:
    assert decode(body_of({"k": "hello", "!": ["k", "out", "fb"]})).kind == "hello"


def test_too_large_frames_are_not_written() -> None:
    huge = Tensor("u8", (MAX_FRAME_BYTES,), bytes(MAX_FRAME_BYTES))
    with pytest.raises(BadInputError, match="send smaller pieces"):
        encode(Frame("data", 0, 0, tensors={"mel": huge}))


@pytest.mark.parametrize("kind", ["one array", "arrays of arrays", "arrays of small arrays", "map"])
def test_a_frame_of_tiny_items_stays_bounded(kind: str) -> None:
    """64 MiB of one-byte items are refused before they become gigabytes of objects."""
    count = (MAX_FRAME_BYTES - 64) // (1 if kind != "map" else 3)
    if kind == "one array":
        filler = b"\xdd" + struct.pack(">I", count) + bytes(count)
    elif kind == "arrays of arrays":
        filler = b"\xdd" + struct.pack(">I", count) + b"\x90" * count
    elif kind == "arrays of small arrays":
        filler = (b"\xdc\xff\xff" + (b"\x9f" + b"\x90" * 15) * 65535) * 60
        filler = b"\xdc\x00\x3c" + filler
    else:
        filler = b"\xdf" + struct.pack(">I", count) + b"\xa1a\x00" * count
    body = b"\x82\xa1k\xa4data\xa1i" + filler
    assert len(body) <= MAX_FRAME_BYTES
    tracemalloc.start()
    with pytest.raises(BadInputError):
        decode(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 << 20


def test_the_limit_on_items_admits_real_frames() -> None:
    ids = [131071] * (MAX_ITEMS // 8)
    assert decode(body_of({"k": "data", "s": 0, "i": ids})).ids == ids
