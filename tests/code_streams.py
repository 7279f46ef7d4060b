"""Streams of codes as vx-flow sends them; imported by name, not collected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from voxtral_pipes.formats.frame import Frame, Tensor, encode
from voxtral_pipes.stages.base import Hello, Outgoing, Output

RATE_HZ = 24000
Codes = npt.NDArray[np.uint16]


def sound(n: int, seed: int = 1, *, width: int = 37, semantic: int = 254, levels: int = 21) -> Codes:
    """Draw ordinary codes, [n, width]."""
    rng = np.random.default_rng(seed)
    first, rest = rng.integers(0, semantic, (n, 1)), rng.integers(0, levels, (n, width - 1))
    return (np.concatenate([first, rest], axis=1) + 2).astype(np.uint16)


def end_row(width: int = 37) -> Codes:
    """Make the row that ends a stream, [1, width]."""
    row = np.full((1, width), 2, np.uint16)
    row[0, 0] = 1
    return row


def hello(model: Mapping[str, str] | None = None, width: int = 37) -> Frame:
    return Outgoing("vx-flow").hello(Hello({"codes": {"d": "u16", "h": [-1, width]}}, model), RATE_HZ)


def cut(codes: Codes, sizes: Iterable[int] = ()) -> Iterator[Output]:
    """Cut rows into data frames of `sizes`, the last holding the rest."""
    at = 0
    for size in [*sizes, len(codes)]:
        piece = codes[at : at + size]
        yield Output(1920 * at, 1920 * len(piece), {"codes": Tensor.of(piece)})
        at += len(piece)


def one_by_one(codes: Codes) -> list[Output]:
    """Cut as vx-flow does: a row a frame."""
    return list(cut(codes, [1] * (len(codes) - 1)))


def pipe(
    streams: Mapping[int, Iterable[Output]],
    *,
    interleaved: bool = True,
    ended: bool = True,
    model: Mapping[str, str] | None = None,
) -> Iterator[Frame]:
    """Send streams over one pipe, opened in order, frames taking turns or each stream whole."""
    outgoing = Outgoing("vx-flow")
    yield hello(model)
    left = {stream: list(outputs) for stream, outputs in streams.items()}
    if interleaved:
        for stream in left:
            yield outgoing.open(stream, {})
    while left:
        for stream in list(left):
            if not interleaved:
                yield outgoing.open(stream, {})
            while left[stream]:
                yield outgoing.data(stream, left[stream].pop(0))
                if interleaved:
                    break
            if not left[stream]:
                del left[stream]
                if ended:
                    yield outgoing.end(stream)
    if ended:
        yield Frame("end")


def wire(frames: Iterable[Frame]) -> bytes:
    """Serialise frames."""
    return b"".join(map(encode, frames))


def spoken(codes: Codes) -> bytes:
    """Serialise a pipe of one stream as vx-flow sends it, END_AUDIO's row included."""
    return wire(pipe({0: one_by_one(np.concatenate([codes, end_row(codes.shape[1])]))}))


def many(streams: Sequence[Codes], *, interleaved: bool = True) -> bytes:
    """Serialise a pipe of several streams, a row a frame."""
    return wire(pipe({i: one_by_one(codes) for i, codes in enumerate(streams)}, interleaved=interleaved))
