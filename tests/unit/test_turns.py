"""Streams side by side are passed one after another, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from code_streams import RATE_HZ, cut, hello, one_by_one, pipe, sound

from voxtral_pipes.errors import BadInputError, TruncatedError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.stages.base import Incoming, Outgoing, Output
from voxtral_pipes.stages.turns import JOINED_BYTES, OVERHEAD_BYTES, Turns


def turns(frames, limit: int = 1 << 20) -> Turns:
    return Turns(frames, "codes", "vx-test", limit)


def passed(frames, limit: int = 1 << 20) -> list[Frame]:
    return list(turns(frames, limit).run())


def rows(frames, stream: int) -> np.ndarray:
    pieces = [f.tensors["codes"].numpy() for f in frames if f.kind == "data" and f.stream == stream]
    return np.concatenate(pieces) if pieces else sound(0)


def order(frames) -> list[tuple[str, int | None]]:
    """Name kinds and streams, data frames in a row once."""
    said = [(f.kind, f.stream) for f in frames]
    return [one for one, before in zip(said, [None, *said], strict=False) if one != before]


def whole(*streams: int) -> list[tuple[str, int | None]]:
    middle = [(kind, stream) for stream in streams for kind in ("open", "data", "end")]
    return [("hello", None), *middle, ("end", None)]


def test_streams_come_whole_in_the_order_of_open() -> None:
    codes = {7: sound(5, 1), 2: sound(9, 2), 4: sound(3, 3)}
    frames = passed(pipe({stream: one_by_one(c) for stream, c in codes.items()}))
    assert order(frames) == whole(7, 2, 4)
    for stream, c in codes.items():
        np.testing.assert_array_equal(rows(frames, stream), c)
    incoming = Incoming(frames, "codes", "vx-test")
    incoming.hello()
    assert list(incoming.read()) == frames[1:-1]  # a well-formed sequence


def test_the_first_stream_passes_at_once_and_the_next_when_it_is_first() -> None:
    outgoing = Outgoing("vx-test")
    one, two = one_by_one(sound(4, 1)), one_by_one(sound(4, 2))
    given: list[Frame] = []

    def source():
        yield hello()
        yield outgoing.open(0, {})
        assert len(given) == 2
        yield outgoing.data(0, one[0])
        yield outgoing.open(1, {})
        yield outgoing.data(1, two[0])
        yield outgoing.data(1, two[1])
        assert len(given) == 3  # of stream 0 at once, of stream 1 nothing
        yield outgoing.end(0)
        yield outgoing.data(1, two[2])
        assert order(given)[-3:] == [("end", 0), ("open", 1), ("data", 1)]
        yield outgoing.data(1, two[3])
        np.testing.assert_array_equal(rows(given, 1), sound(4, 2))
        yield outgoing.end(1)
        yield Frame("end")

    for frame in turns(source()).run():
        given.append(frame)
    np.testing.assert_array_equal(rows(given, 1), sound(4, 2))


def test_held_frames_are_joined_into_few() -> None:
    frames = passed(pipe({0: one_by_one(sound(3000, 1)), 1: one_by_one(sound(3000, 2))}))
    held = [f for f in frames if f.kind == "data" and f.stream == 1]
    assert len(held) <= 3000 * 74 // JOINED_BYTES + 2
    np.testing.assert_array_equal(rows(frames, 1), sound(3000, 2))


def test_frames_that_do_not_fit_together_stay_apart() -> None:
    odd = [
        Output(0, 0, {"codes": Tensor.of(sound(1, width=36))}), *cut(sound(2)),
        Output(0, 0, {"codes": Tensor.of(sound(2)[0])}), Output(0, 0), *cut(sound(1)),
    ]  # fmt: skip
    frames = passed(pipe({0: cut(sound(9), [1] * 8), 1: odd}))
    held = [f for f in frames if f.kind == "data" and f.stream == 1]
    assert [f.tensors["codes"].shape if f.tensors else None for f in held] == [
        (1, 36), (2, 37), (37,), None, (1, 37),
    ]  # fmt: skip


def test_too_much_is_an_error_and_what_was_held_is_dropped() -> None:
    streams = {0: one_by_one(sound(50, 1)), 1: list(cut(sound(2000, 2)))}
    given = []
    with pytest.raises(BadInputError, match=r"wait for stream 0 to end.*--out-dir"):
        for frame in turns(pipe(streams), limit=100_000).run():
            given.append(frame)
    assert order(given) == [("hello", None), ("open", 0), ("data", 0)]


def test_room_is_given_back_when_a_turn_comes() -> None:
    limit = 2000 * 74 + 10 * OVERHEAD_BYTES
    outgoing = Outgoing("vx-test")

    def source():
        yield hello()
        yield outgoing.open(0, {})
        for stream in range(1, 20):
            yield outgoing.open(stream, {})
            for output in one_by_one(sound(1500, stream)):
                yield outgoing.data(stream, output)
            yield outgoing.end(stream - 1)
        yield outgoing.end(19)
        yield Frame("end")

    frames = passed(source(), limit)
    assert order(frames) == [
        ("hello", None), ("open", 0), ("end", 0), *whole(*range(1, 20))[1:]
    ]  # fmt: skip


def test_endless_empty_streams_behind_a_long_one_do_not_pile_up() -> None:
    outgoing = Outgoing("vx-test")

    def source():
        yield hello()
        yield outgoing.open(0, {})
        for stream in range(1, 5000):
            yield outgoing.open(stream, {})
            yield outgoing.end(stream)
        yield outgoing.end(0)
        yield Frame("end")

    assert order(passed(source(), limit=20 * OVERHEAD_BYTES)) == [
        ("hello", None), ("open", 0), ("end", 0), ("end", None),
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["truncated", "fatal", "malformed"])
def test_what_came_is_passed_before_an_error(ending: str) -> None:
    frames = list(pipe({0: one_by_one(sound(3, 1)), 1: one_by_one(sound(3, 2))}, ended=False))
    error = Outgoing("vx-flow").error(BadInputError("it broke"))
    last = {"truncated": [], "fatal": [error], "malformed": [Frame("open", stream=0)]}[ending]
    given: list[Frame] = []
    expected = {"truncated": TruncatedError, "malformed": BadInputError}.get(ending)
    try:
        for frame in turns([*frames, *last]).run():
            given.append(frame)
    except BadInputError as raised:
        assert expected is not None and type(raised) is expected
    else:
        assert given.pop() == error
    assert order(given) == [("hello", None), ("open", 0), ("data", 0), ("open", 1), ("data", 1)]


def test_an_error_ends_a_stream_in_its_turn() -> None:
    outgoing = Outgoing("vx-flow")
    one, two = one_by_one(sound(3, 1)), one_by_one(sound(3, 2))
    frames = [
        hello(), outgoing.open(0, {}), outgoing.open(1, {}), outgoing.data(1, two[0]),
        outgoing.error(BadInputError("it broke"), 1), outgoing.data(0, one[0]), outgoing.end(0), Frame("end"),
    ]  # fmt: skip
    assert order(passed(frames)) == [
        ("hello", None), ("open", 0), ("data", 0), ("end", 0), ("open", 1), ("data", 1), ("error", 1), ("end", None),
    ]  # fmt: skip


def test_input_is_checked_as_it_comes() -> None:
    bad = Frame("data", 1, 5, tensors={"codes": Tensor.of(sound(1))})
    frames = list(pipe({0: one_by_one(sound(3, 1)), 1: []}, ended=False))
    with pytest.raises(BadInputError, match="frame 0 is missing"):
        passed([*frames, bad])
    assert frames[0].fields["tb"] == RATE_HZ
