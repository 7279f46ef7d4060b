"""What must hold for any codes, cut in any way: the laws of vx-codec."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from code_streams import cut, hello, one_by_one, pipe, wire
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codec import CONFIG, audio, codes, stage

from voxtral_pipes.cli.ahead import ReadAhead
from voxtral_pipes.formats.frame import Frame, FrameReader
from voxtral_pipes.stages.base import Drive, Output
from voxtral_pipes.stages.turns import Turns

N = 14
FRAMES = 2500
SIZES = st.lists(st.integers(0, 5), max_size=12)
quick = settings(max_examples=25, deadline=None)


def driven(frames: Iterable[Frame], *, in_turn: bool = False) -> list[Frame]:
    frames = Turns(frames, "codes", "vx-codec").run() if in_turn else frames
    return list(Drive(stage(), frames).run())


@cache
def alone(seed: int, n: int = N) -> bytes:
    """Return the samples of a stream of its own, as bytes: every law here is exact."""
    return audio(driven(pipe({0: one_by_one(codes(N, seed)[:n])})), 0).tobytes()


@quick
@given(sizes=SIZES)
def test_any_cutting_into_frames_gives_the_same_samples(sizes: list[int]) -> None:
    assert audio(driven(pipe({0: cut(codes(N), sizes)})), 0).tobytes() == alone(1)


@quick
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_any_cutting_of_the_bytes_gives_the_same_samples(sizes: list[int]) -> None:
    frames = FrameReader(ReadAhead(in_pieces(wire(pipe({0: one_by_one(codes(N))})), sizes)))
    assert audio(driven(frames, in_turn=True), 0).tobytes() == alone(1)


def in_pieces(data: bytes, sizes: list[int]) -> Callable[[int], bytes]:
    at = turn = 0

    def read(size: int) -> bytes:
        nonlocal at, turn
        piece = data[at : at + min(size, sizes[turn % len(sizes)])]
        at, turn = at + len(piece), turn + 1
        return piece

    return read


@quick
@given(n=st.integers(0, N))
def test_a_prefix_of_the_codes_gives_a_prefix_of_the_samples(n: int) -> None:
    assert alone(1)[: 4 * n * CONFIG.frame_samples] == alone(1, n)


@quick
@given(
    streams=st.dictionaries(st.integers(0, 9), st.tuples(st.integers(0, N), SIZES), min_size=1, max_size=4),
    in_turn=st.booleans(),
)
def test_interleaved_streams_equal_separate_ones(
    streams: dict[int, tuple[int, list[int]]], in_turn: bool
) -> None:
    sent = {stream: cut(codes(N, stream)[:n], sizes) for stream, (n, sizes) in streams.items()}
    frames = driven(pipe(sent), in_turn=in_turn)
    for stream, (n, _) in streams.items():
        assert audio(frames, stream).tobytes() == alone(stream, n)


def test_minutes_of_speech_in_flat_memory() -> None:
    """The state has its full size after a few frames and never grows, and nothing else is carried."""
    stream, _ = stage().open(0, {})
    [row] = cut(codes(1))
    frame = row.frame(0)
    sizes = []
    for n in range(FRAMES):
        [output] = stream.push(frame)
        assert isinstance(output, Output) and output.tick == n * CONFIG.frame_samples
        if n in (20, FRAMES - 1):
            sizes.append(state_bytes(stream))
    assert sizes[0] == sizes[1] < 50_000


def state_bytes(stream: object) -> int:
    """Count the bytes that the tensors of a state keep alive, those behind views too."""
    state = stream._state  # type: ignore[attr-defined]
    return sum(tensor.untyped_storage().nbytes() for tensor in state.held.values())


def test_an_end_without_streams_is_an_end() -> None:
    frames = [hello(), Frame("end")]
    assert [f.kind for f in driven(frames, in_turn=True)] == ["hello", "end"]
    assert np.array_equal(audio(driven(frames), 0), np.empty(0))
