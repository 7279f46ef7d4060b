"""The laws of vx-flow: any cutting gives the same codes, streams do not touch, a row goes out at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from flow_streams import (
    END_ROW,
    FLOW,
    PLAIN,
    WIDTH,
    Answered,
    codes,
    flow_stage,
    hidden,
    hidden_of,
    of,
    pipe,
    quick,
    rows_of,
)
from hypothesis import given
from hypothesis import strategies as st
from tts_models import flow_inputs

from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.codes import END_AUDIO
from voxtral_pipes.models.noise import frame_noise
from voxtral_pipes.stages.base import Drive
from voxtral_pipes.stages.flow import FlowOptions
from voxtral_pipes.stages.tensors import send_rows


@quick
@given(cuts=st.lists(st.integers(1, 19), max_size=20))
def test_any_cutting_of_hidden_states_gives_the_same_bytes(cuts: list[int]) -> None:
    whole = codes(hidden_of(hidden()))
    assert of(codes(hidden_of(hidden(), cuts)), 0) == of(whole, 0)
    assert len(rows_of(whole)) == 20


def test_a_row_goes_out_as_soon_as_its_hidden_state_has_come_and_back_before_that() -> None:
    back = Answered()
    sent: list[Frame] = []

    def watched() -> Iterator[Frame]:
        for frame in hidden_of(hidden(), range(20)):
            assert len(sent) == (frame.seq or 0) or frame.kind == "open"
            yield frame

    for frame in Drive(flow_stage(back=back), pipe("hidden", watched())).run():
        if frame.kind == "data":
            sent.append(frame)
            assert len(back.sent) == len(sent)
            assert (frame.seq, frame.tick, frame.ticks) == (len(sent) - 1, 1920 * (len(sent) - 1), 1920)
            assert frame.tensors["codes"].dtype == "u16" and frame.tensors["codes"].shape == (1, WIDTH)
    assert [(0, n, row) for n, row in enumerate(rows_of(sent))] == back.sent
    assert back.stopped == []


@quick
@given(order=st.randoms(use_true_random=False), cuts=st.lists(st.integers(1, 19), max_size=20))
def test_interleaved_streams_give_the_codes_they_give_alone(order: random.Random, cuts: list[int]) -> None:
    streams = {
        3: hidden_of(hidden(), cuts, 3),
        8: hidden_of(hidden(), stream=8),
        9: hidden_of(hidden(12), cuts, 9),
    }
    left = [list(frames) for frames in streams.values()]
    mixed = []
    while any(left):
        mixed.append(order.choice([queue for queue in left if queue]).pop(0))
    together = codes(mixed)
    for stream, frames in streams.items():
        assert of(together, stream) == of(codes(frames), stream)


def test_seed_stream_and_frame_decide_the_noise_and_nothing_else() -> None:
    first = rows_of(codes(hidden_of(hidden())))
    assert rows_of(codes(hidden_of(hidden()))) == first
    others = [
        rows_of(codes(hidden_of(hidden()), replace(PLAIN, seed=8))),
        rows_of(codes(hidden_of(hidden(), stream=1)), 1),
    ]
    for other in others:
        assert [row[0] for row in other] == [row[0] for row in first]  # no chance in what is said
        assert sum(a != b for a, b in zip(other, first, strict=True)) > 15
    same = hidden()[:1].expand(20, -1)
    assert len({tuple(row) for row in rows_of(codes(hidden_of(same)))}) > 15


def test_the_open_frame_holds_what_is_needed_to_say_it_again() -> None:
    opened = codes(hidden_of(hidden()), FlowOptions(steps=3, guidance=1.5, seed=2**64 - 1))[1]
    assert opened.meta == {"voice": "test", "steps": 3, "cfg": 1.5, "seed": 2**64 - 1}
    noise = np.zeros((20, FLOW.acoustic_dim), np.float32)
    assert "seed" not in codes(hidden_of(hidden()), replace(PLAIN, noise=noise))[1].meta


def drawn(n: int, seed: int = PLAIN.seed, stream: int = 0) -> np.ndarray:
    return np.stack([frame_noise(seed, stream, frame, FLOW.acoustic_dim) for frame in range(n)])


@quick
@given(cuts=st.lists(st.integers(1, 19), max_size=20))
def test_noise_from_a_file_is_noise_like_any_other(cuts: list[int]) -> None:
    expected = rows_of(codes(hidden_of(hidden())))
    given = replace(PLAIN, seed=99, noise=drawn(20))
    assert rows_of(codes(hidden_of(hidden(), cuts), given)) == expected
    assert rows_of(codes(hidden_of(hidden(), cuts, 5), given), 5) == expected  # whatever the stream's number


def test_noise_that_does_not_suffice_ends_the_stream_and_tells_vx_backbone() -> None:
    back, lines = Answered(), list[str]()
    sent = codes(hidden_of(hidden(), range(20)), replace(PLAIN, noise=drawn(5)), back, lines.append)
    assert [frame.kind for frame in sent[1:]] == ["open", *["data"] * 5, "error", "end"]
    assert rows_of(sent) == rows_of(codes(hidden_of(hidden())))[:5]
    assert lines == ["stream 0: --noise has 5 rows, and frame 5 needs one more"]
    assert back.stopped == [0] and len(back.sent) == 5


def test_noise_is_for_one_stream_and_another_is_refused_when_its_turn_comes() -> None:
    """Not before: while one stream is spoken, vx-backbone waits for the codes of that stream."""
    back, lines = Answered(), list[str]()
    one, other = hidden_of(hidden(), range(20)), hidden_of(hidden(12), range(20), 4)
    stopped_at = []

    def watched() -> Iterator[Frame]:
        for frame in [one[0], other[0], *one[1:], *other[1:]]:
            yield frame
            stopped_at.append(list(back.stopped))

    sent = codes(watched(), replace(PLAIN, noise=drawn(20)), back, lines.append)
    assert rows_of(sent) == rows_of(codes(one)) and rows_of(sent, 4) == []
    assert back.stopped == [4]
    assert stopped_at.index([4]) == len(one) + 1  # with the first of its states
    assert len(lines) == 1 and lines[0].startswith("stream 4: --noise is for one stream")


def test_the_row_that_ends_a_stream_goes_out_both_ways_and_what_follows_is_dropped() -> None:
    """The inputs want END_AUDIO at frame 4, and go on to 40."""
    inputs, _ = flow_inputs(FLOW)
    for cuts in ((), range(40), (3, 4), (5,)):
        back = Answered()
        sent = codes([*hidden_of(inputs, cuts), *hidden_of(hidden(), stream=1)], back=back)
        rows = rows_of(sent)
        assert len(rows) == 5 and rows[4] == END_ROW and all(row[0] > END_AUDIO for row in rows[:4])
        assert [row for stream, _, row in back.sent if stream == 0] == rows
        ended = next(frame for frame in sent if frame.kind == "end" and frame.stream == 0)
        assert ended.seq == 5
        assert len(rows_of(sent, 1)) == 20 and back.stopped == []


def test_no_empty_keeps_a_stream_from_ending_at_its_first_frame_only() -> None:
    inputs, _ = flow_inputs(FLOW)
    wants_end = torch.cat((inputs[4:5], inputs[:2], inputs[4:5], inputs[:1]))
    assert rows_of(codes(hidden_of(wants_end))) == [END_ROW]
    rows = rows_of(codes(hidden_of(wants_end), replace(PLAIN, no_empty=True)))
    assert len(rows) == 4 and rows[0][0] > END_AUDIO and rows[3] == END_ROW


@pytest.mark.parametrize("bad", ["nan", "narrow", "missing"])
def test_states_that_are_none_close_their_stream_only(bad: str) -> None:
    rows = hidden().clone()
    frames = hidden_of(rows, range(20), 1)
    wrong = {
        "nan": {"hidden": send_rows(torch.full((1, FLOW.input_dim), torch.nan))},
        "narrow": {"hidden": send_rows(rows[:1, 1:])},
        "missing": {"codes": Tensor("u16", (0,), b"")},
    }
    frames[5] = replace(frames[5], tensors=wrong[bad])
    back, lines = Answered(), list[str]()
    sent = codes([*frames, *hidden_of(hidden(), stream=2)], back=back, report=lines.append)
    assert len(rows_of(sent, 1)) == 4 and len(rows_of(sent, 2)) == 20
    assert back.stopped == [1] and len(lines) == 1


def test_bf16_states_are_taken_as_the_values_they_are() -> None:
    exact = hidden().bfloat16()
    wide, narrow = codes(hidden_of(exact.float())), codes(hidden_of(exact))
    assert rows_of(narrow) == rows_of(wide)
