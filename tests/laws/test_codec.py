"""What must hold for any codes, cut in any way: the laws of vx-codec."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import pytest
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


TOGETHER = pytest.mark.parametrize("together", [None, 4, 8])
"""Frames of a step at most: one on the CPU, more on CUDA."""


def driven(frames: Iterable[Frame], *, in_turn: bool = False, together: int | None = None) -> list[Frame]:
    frames = Turns(frames, "codes", "vx-codec").run() if in_turn else frames
    return list(Drive(stage(together), frames).run())


@cache
def alone(seed: int, n: int = N, together: int | None = None) -> bytes:
    """Return the samples of a stream of its own, as bytes: every law here is exact, but where it says otherwise."""
    return audio(driven(pipe({0: one_by_one(codes(N, seed)[:n])}), together=together), 0).tobytes()


@TOGETHER
@quick
@given(sizes=SIZES)
def test_any_cutting_into_frames_gives_the_same_samples(together: int | None, sizes: list[int]) -> None:
    frames = driven(pipe({0: cut(codes(N), sizes)}), together=together)
    assert audio(frames, 0).tobytes() == alone(1, together=together)


@TOGETHER
@quick
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_any_cutting_of_the_bytes_gives_the_same_samples(together: int | None, sizes: list[int]) -> None:
    frames = FrameReader(ReadAhead(in_pieces(wire(pipe({0: one_by_one(codes(N))})), sizes)))
    assert audio(driven(frames, in_turn=True, together=together), 0).tobytes() == alone(1, together=together)


@pytest.mark.parametrize("together", [2, 4, 8])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 7, 9, 11, 16, 23, 24, 31, 39])
def test_steps_of_several_frames_change_nothing_but_rounding(together: int, n: int) -> None:
    """Whatever the length: what is left at the end goes by smaller steps."""
    drawn = codes(n)
    expected = audio(driven(pipe({0: one_by_one(drawn)})), 0)
    given = audio(driven(pipe({0: one_by_one(drawn)}), together=together), 0)
    np.testing.assert_allclose(given, expected, atol=1e-5, rtol=0)


def test_sizes_of_steps_follow_from_position_alone() -> None:
    frames = driven(pipe({0: cut(codes(39), [5, 1, 17])}), together=8)
    data = [f for f in frames if f.kind == "data"]
    sizes = [f.tensors["audio"].shape[0] for f in data]
    assert sizes == [1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 2, 1]
    samples = CONFIG.frame_samples
    assert [f.tick for f in data] == [samples * sum(sizes[:i]) for i in range(len(sizes))]
    assert [f.ticks for f in data] == [samples * size for size in sizes]
    heard = [sum(sizes[:i]) for i in range(len(sizes))]
    assert all(2 * size <= done or size == 1 for size, done in zip(sizes, heard, strict=True))


def test_sound_waits_for_no_more_than_its_step() -> None:
    """What has come and fills its step is heard, before anything else comes."""
    stream, _ = stage(4).open(0, {})
    frames = [output.frame(0) for output in one_by_one(codes(13))]
    given = [sum(out.ticks for out in stream.push(frame)) // CONFIG.frame_samples for frame in frames]
    assert given == [1, 1, 1, 1, 0, 2, 0, 2, 0, 0, 0, 4, 0]


@TOGETHER
@quick
@given(lengths=st.lists(st.integers(0, N), min_size=1, max_size=4))
def test_the_last_sound_of_a_stream_leaves_when_it_ends(together: int | None, lengths: list[int]) -> None:
    """Nothing behind its end has been taken from the input by then: the pipe may stay open."""
    taken: list[Frame] = []

    def watched() -> Iterable[Frame]:
        sent = {stream: one_by_one(codes(N)[:n]) for stream, n in enumerate(lengths)}
        for frame in pipe(sent, interleaved=False):
            taken.append(frame)
            yield frame

    given: list[Frame] = []
    for frame in Drive(stage(together), Turns(watched(), "codes", "vx-codec").run()).run():
        given.append(frame)
        if frame.kind == "end" and frame.stream is not None:
            assert (taken[-1].kind, taken[-1].stream) == ("end", frame.stream)
            assert audio(given, frame.stream).size == CONFIG.frame_samples * lengths[frame.stream]
    assert [f.stream for f in given if f.kind == "end"] == [*range(len(lengths)), None]


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


@TOGETHER
@quick
@given(
    streams=st.dictionaries(st.integers(0, 9), st.tuples(st.integers(0, N), SIZES), min_size=1, max_size=4),
    in_turn=st.booleans(),
)
def test_interleaved_streams_equal_separate_ones(
    together: int | None, streams: dict[int, tuple[int, list[int]]], in_turn: bool
) -> None:
    sent = {stream: cut(codes(N, stream)[:n], sizes) for stream, (n, sizes) in streams.items()}
    frames = driven(pipe(sent), in_turn=in_turn, together=together)
    for stream, (n, _) in streams.items():
        assert audio(frames, stream).tobytes() == alone(stream, n, together)


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
