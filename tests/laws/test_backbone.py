"""The laws of vx-backbone, alone and in a circle with vx-flow: never a frame ahead, and streams do not touch."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from flow_streams import END_ROW, FLOW, PLAIN, WIDTH, flow_stage, hidden, hidden_of, of, pipe, quick, rows_of
from hypothesis import given
from hypothesis import strategies as st
from tts_models import SMALL_BACKBONE, random_codes_of, random_rows, random_tensors

from voxtral_pipes.config import BackboneConfig
from voxtral_pipes.errors import BadInputError, TruncatedError
from voxtral_pipes.formats.frame import Frame, Tensor, encode
from voxtral_pipes.models.backbone import Backbone, Speaker
from voxtral_pipes.models.prompt import PromptIds
from voxtral_pipes.models.tts_shapes import backbone_shapes
from voxtral_pipes.stages.backbone import BackboneOptions, BackboneStage, SavedCodes
from voxtral_pipes.stages.base import Drive, Hello, Outgoing, Output

BACKBONE = replace(SMALL_BACKBONE, semantic_size=FLOW.semantic_size)
IDS = PromptIds(n_special=100)


@dataclass
class Circle:
    """Both ends of the way back; the one stage reads what the other has just answered."""

    announcement = None
    answers: deque[tuple[int, int, list[int] | None]] = field(default_factory=deque)
    events: list[tuple[str, int, int]] = field(default_factory=list)

    def start(self) -> None:
        self.events.append(("start", -1, -1))

    def ready(self) -> None:
        self.events.append(("ready", -1, -1))

    def limit(self, stream: int) -> None:
        return None

    def take(self, stream: int, frame: int) -> list[int] | None:
        self.events.append(("take", stream, frame))
        of_stream, of_frame, row = self.answers.popleft()
        assert of_stream == stream and (row is None or of_frame == frame)
        return row

    def send(self, stream: int, frame: int, row: Sequence[int]) -> None:
        self.events.append(("send", stream, frame))
        self.answers.append((stream, frame, list(row)))

    def stop(self, stream: int) -> None:
        self.answers.append((stream, -1, None))


class Script(Circle):
    """Answers what it was told: the rows of each stream; None ends the asking."""

    def __init__(self, rows: Mapping[int, Sequence[list[int] | None]]) -> None:
        super().__init__()
        self.rows = rows

    def take(self, stream: int, frame: int) -> list[int] | None:
        self.events.append(("take", stream, frame))
        return self.rows[stream][frame]


@dataclass(frozen=True)
class Preset:
    name: str = "somebody"
    language: str = "en"


@cache
def speaker() -> Speaker:
    backbone = Backbone.of(dict(random_tensors(backbone_shapes(BACKBONE))), BACKBONE)
    return Speaker(backbone, random_rows(9, BACKBONE.dim, 5), IDS.audio, 12)


def backbone_stage(
    given: Any, config: BackboneConfig = BACKBONE, speaking: Any = None, **options: Any
) -> BackboneStage:
    chosen = BackboneOptions(**{"max_frames": 12, **options})
    return BackboneStage(config, "f32", speaking or speaker, given, Preset(), IDS, chosen)


def text(ids: Sequence[int], stream: int = 0, cuts: Iterable[int] = ()) -> list[Frame]:
    outgoing = Outgoing("vx-tokenize")
    frames = [outgoing.open(stream, {"source": "test"})]
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(ids)}), len(ids)]
    for first, last in pairwise(edges):
        frames.append(outgoing.data(stream, Output(0, 0, ids=list(ids[first:last]))))
    return [*frames, outgoing.end(stream)]


def states(
    given: Any, frames: Iterable[Frame], report: Any = lambda line: None, **options: Any
) -> list[Frame]:
    return list(Drive(backbone_stage(given, **options), pipe("i", frames), report).run())


HELLO, WORLD = [201, 202, 203, 204], [299, 150, 101]


@cache
def spoken(seed: int = 7) -> tuple[list[Frame], list[Frame], list[tuple[str, int, int]]]:
    """Say two texts round the circle -> hidden states, codes, and what happened when."""
    circle = Circle()
    passing = []

    def tee(frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            passing.append(frame)
            if frame.kind == "data":
                assert frame.stream is not None and frame.seq is not None
                circle.events.append(("hidden", frame.stream, frame.seq))
            yield frame

    source = Drive(backbone_stage(circle), pipe("i", [*text(HELLO), *text(WORLD, 1)])).run()
    end = Drive(flow_stage(replace(PLAIN, seed=seed), circle), tee(source)).run()
    return passing, list(end), circle.events


def test_there_is_never_a_hidden_state_ahead_of_the_codes() -> None:
    _, _, events = spoken()
    expected = [("start", -1, -1), ("ready", -1, -1)]
    for stream in range(2):
        for frame in range(12):
            expected += [(what, stream, frame) for what in ("hidden", "send", "take")]
    assert events == expected


def test_the_codes_decide_what_is_said_next() -> None:
    one, other = spoken()[0], spoken(8)[0]
    for stream in range(2):
        first, second = (rows_of(frames, stream, "hidden") for frames in (one, other))
        assert len(first) == len(second) == 12
        assert first[0] == second[0] and all(a != b for a, b in zip(first[1:], second[1:], strict=True))
    assert of(one, 0) != of(one, 1)


def test_saved_hidden_states_give_the_same_codes() -> None:
    passing, sent, _ = spoken()
    again = list(Drive(flow_stage(), passing).run())
    assert b"".join(map(encode, again)) == b"".join(map(encode, sent))


def test_saved_codes_give_the_same_hidden_states() -> None:
    passing, sent, _ = spoken()
    again = states(SavedCodes(sent), [*text(HELLO), *text(WORLD, 1)], max_frames=2048)
    for stream in range(2):
        assert of(again, stream) == of(passing, stream)
    # A cap is a cap, and as many frames as were saved are no fewer than wanted.
    warned: list[str] = []
    fewer = states(SavedCodes(sent), text(HELLO), max_frames=5, warn=warned.append)
    assert rows_of(fewer, 0, "hidden") == rows_of(passing, 0, "hidden")[:5]
    assert len(warned) == 1 and "stopped at 5 frames (0.4 s)" in warned[0]


@quick
@given(order=st.randoms(use_true_random=False), cuts=st.lists(st.integers(1, 3), max_size=3))
def test_streams_of_text_are_spoken_one_after_the_other_however_they_come(
    order: random.Random, cuts: list[int]
) -> None:
    passing, sent, _ = spoken()
    left = [text(HELLO, 0, cuts), text(WORLD, 1, cuts)]
    mixed = []
    while any(left):
        mixed.append(order.choice([queue for queue in left if queue]).pop(0))
    again = states(SavedCodes(sent), mixed)
    for stream in range(2):
        assert of(again, stream) == of(passing, stream)


def row(seed: int) -> list[int]:
    made: list[int] = random_codes_of(FLOW.semantic_size, FLOW.acoustic_levels, FLOW.acoustic_dim, 1, seed)[
        0, 0
    ].tolist()
    return made


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_at_most_so_many_frames_of_which_none_is_asked_for_in_vain(limit: int) -> None:
    warned: list[str] = []
    asked = []

    class Counting:
        voice_rows = 9

        def begin(self, ids: list[int], max_frames: int) -> torch.Tensor:
            asked.append(max_frames)
            return torch.zeros(1, BACKBONE.dim)

        def next(self, codes: list[int]) -> torch.Tensor:
            asked.append(-1)
            return torch.zeros(1, BACKBONE.dim)

    script = Script({0: [row(n) for n in range(9)]})
    sent = states(script, text(HELLO), speaking=Counting, max_frames=limit, warn=warned.append)
    assert len(rows_of(sent, 0, "hidden")) == limit
    assert asked == [limit] + [-1] * (limit - 1)
    assert [event for event in script.events if event[0] == "take"] == [("take", 0, n) for n in range(limit)]
    assert len(warned) == 1 and f"stream 0: stopped at {limit} frames" in warned[0]


def test_the_row_that_ends_is_counted_and_nothing_is_asked_behind_it() -> None:
    warned: list[str] = []
    script = Script({0: [row(0), row(1), END_ROW], 1: [row(2), END_ROW]})
    sent = states(script, [*text(HELLO), *text(WORLD, 1)], max_frames=3, warn=warned.append)
    assert [len(rows_of(sent, stream, "hidden")) for stream in range(2)] == [3, 2]
    assert [frame.seq for frame in sent if frame.kind == "end"] == [3, 2, None]
    assert warned == []  # ended by itself at the last frame it was allowed


def test_an_end_at_frame_0_is_one_state_a_warning_and_no_error() -> None:
    warned, lines = list[str](), list[str]()
    sent = states(Script({0: [END_ROW]}), text(HELLO), lines.append, warn=warned.append)
    assert [frame.kind for frame in sent] == ["hello", "open", "data", "end", "end"]
    assert len(warned) == 1 and "nothing is said; try vx-flow --no-empty" in warned[0] and lines == []


def test_a_stream_of_which_no_more_is_wanted_ends_and_the_next_is_spoken() -> None:
    warned: list[str] = []
    script = Script({0: [row(0), row(1), None], 1: [row(2), END_ROW]})
    sent = states(script, [*text(HELLO), *text(WORLD, 1)], warn=warned.append)
    assert [len(rows_of(sent, stream, "hidden")) for stream in range(2)] == [3, 2]
    assert warned == []


def test_an_interrupt_ends_the_stream_after_the_current_frame_and_the_others_before_their_first() -> None:
    warned: list[str] = []
    script = Script({0: [row(n) for n in range(12)]})
    sent = states(
        script, [*text(HELLO), *text(WORLD, 1), *text(WORLD, 2)], warn=warned.append,
        stopped=lambda: len(script.events) >= 2 + 3,
    )  # fmt: skip
    assert [frame.seq for frame in sent if frame.kind == "end"] == [3, 0, 0, None]
    assert warned == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([0, *[2] * 7], "EMPTY_AUDIO"),
        ([1, 3, *[2] * 6], "acoustic codes follow"),
        ([152, *[2] * 7], "not one of 2 to 151"),
        ([2, *[2] * 6, 23], "acoustic code 23"),
        ([2, *[2] * 6, 1], "acoustic code 1"),
        ([2] * 7, "7 of them, not 8"),
    ],
)
def test_codes_that_are_none_close_their_stream_only(wrong: list[int], said: str) -> None:
    lines: list[str] = []
    script = Script({0: [row(0), wrong], 1: [row(1), END_ROW]})
    sent = states(script, [*text(HELLO), *text(WORLD, 1)], lines.append)
    assert [frame.kind for frame in sent if frame.stream == 0] == ["open", "data", "data", "error"]
    assert len(rows_of(sent, 1, "hidden")) == 2
    assert len(lines) == 1 and said in lines[0]


def test_a_text_takes_positions_from_its_sound_until_none_are_left() -> None:
    """Position P + t holds frame t, and the last frame needs none."""
    marks = 9 + 5
    config = replace(BACKBONE, max_positions=marks + 6)
    lines, warned = list[str](), list[str]()
    texts = {0: [200] * 4, 1: [200] * 6, 2: [200] * 7, 3: [200] * 21, 4: [], 5: [7], 6: [300], 7: [200]}
    script = Script({stream: [row(n) for n in range(9)] for stream in texts})
    frames = [frame for stream, ids in texts.items() for frame in text(ids, stream)]
    sent = states(script, frames, lines.append, config=config, warn=warned.append)
    assert [len(rows_of(sent, stream, "hidden")) for stream in texts] == [3, 1, 0, 0, 0, 0, 0, 6]
    assert len(warned) == 3
    for line, said in zip(
        lines,
        ("has 21 tokens, the model 20 positions; lower vx-tokenize --max-chars", "more than 20 tokens",
         "no token ids", "token id 7 is no text", "token id 300"),
        strict=True,
    ):  # fmt: skip
        assert said in line


def saved(frames: Iterable[Frame], model: Mapping[str, str] | None = None) -> SavedCodes:
    hello = Outgoing("vx-flow").hello(Hello({"codes": {"d": "u16", "h": [-1, WIDTH]}}, model), 24000)
    return SavedCodes([hello, *frames])


def code_frames(stream: int, *pieces: np.ndarray) -> list[Frame]:
    data = [Frame("data", stream, n, tensors={"codes": Tensor.of(piece)}) for n, piece in enumerate(pieces)]
    return [Frame("open", stream), *data, Frame("end", stream, seq=len(data))]


ROWS = np.array([row(n) for n in range(5)], np.uint16)


def test_saved_codes_may_be_cut_and_mixed_in_any_way() -> None:
    expected = states(saved([*code_frames(0, ROWS), Frame("end")]), text(HELLO))
    one, other = code_frames(0, ROWS[:1], ROWS[1:1], ROWS[1:]), code_frames(1, ROWS[:2])
    mixed = [one[0], other[0], one[1], other[1], *one[2:], other[2], Frame("end")]
    again = states(saved(mixed), [*text(HELLO), *text(WORLD, 1)])
    assert of(again, 0) == of(expected, 0) and len(rows_of(again, 0, "hidden")) == 5
    assert len(rows_of(again, 1, "hidden")) == 2


def test_a_stream_saved_without_codes_says_nothing_and_one_not_saved_is_an_error() -> None:
    lines: list[str] = []
    sent = states(
        saved([*code_frames(0), *code_frames(2, ROWS), Frame("end")]),
        [*text(HELLO), *text(HELLO, 1), *text(HELLO, 2)],
        lines.append,
    )
    assert [len(rows_of(sent, stream, "hidden")) for stream in range(3)] == [0, 0, 5]
    assert lines == ["stream 1: the saved codes hold no stream 1"]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (code_frames(0, ROWS.astype(np.int16)), r"stream 0 holds no tensor codes, u16 \[n, 37\]"),
        (code_frames(0, ROWS[0]), r"stream 0 holds no tensor codes, u16 \[n, 37\]"),
        ([Frame("data", 3, 0)], "stream 3 holds no tensor codes"),
        (code_frames(0, ROWS, ROWS[:, :4]), "differ in width"),
        ([*code_frames(0, ROWS), *code_frames(0, ROWS)], "two streams 0"),
        (code_frames(0, ROWS)[:-1], "still open"),
        ([Frame("data", 0, 1, tensors={"codes": Tensor.of(ROWS)})], "frame 0 is missing"),
    ],
)
def test_saved_codes_that_are_none_are_refused(frames: list[Frame], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        saved([*frames, Frame("end")])


def test_saved_codes_must_be_whole_of_this_model_and_codes() -> None:
    with pytest.raises(TruncatedError):
        saved(code_frames(0, ROWS))
    ours, other = ({"family": "voxtral-tts", "fp": digit * 16} for digit in "01")
    hello = Outgoing("vx-flow").hello(Hello({"codes": {}}, other), 24000)
    with pytest.raises(BadInputError, match="made with another model"):
        SavedCodes([hello, Frame("end")], ours)
    SavedCodes([hello, Frame("end")], other)
    with pytest.raises(BadInputError, match=r"reads the tensor 'codes', and .* sends hidden"):
        SavedCodes(pipe("hidden", hidden_of(hidden())))


def test_hidden_states_that_are_not_finite_close_the_stream() -> None:
    """They went out, and vx-flow was blamed."""
    tensors = dict(random_tensors(backbone_shapes(BACKBONE)))
    tensors["layers.0.feed_forward.w2.weight"] = tensors["layers.0.feed_forward.w2.weight"] * torch.nan
    damaged = Speaker(Backbone.of(tensors, BACKBONE), random_rows(9, BACKBONE.dim, 5), IDS.audio, 12)
    said: list[str] = []
    given = Script({0: [ROWS[0].tolist()] * 12})
    found = list(
        Drive(backbone_stage(given, speaking=lambda: damaged), pipe("i", text(HELLO)), said.append).run()
    )
    assert [frame.kind for frame in found] == ["hello", "open", "error", "end"]
    assert len(said) == 1 and "the hidden state of frame 0 is not finite: the weights are damaged" in said[0]


@pytest.mark.parametrize("stream", [0, None])
def test_saved_codes_with_an_error_are_not_whole(stream: int | None) -> None:
    """They were spoken as far as they went, and the command ended with 0."""
    fields = {"code": "failed", "msg": "boom", "by": "vx-flow", "fatal": stream is None}
    with pytest.raises(BadInputError, match="an error of vx-flow: boom"):
        saved([*list(code_frames(0, ROWS))[:-1], Frame("error", stream, fields=fields), Frame("end")])


def test_saved_codes_of_a_shape_that_is_none() -> None:
    for shape in ((0, 2**62), (2**62, 0)):
        codes = Tensor("u16", shape, b"")
        with pytest.raises(BadInputError, match="holds no tensor codes"):
            saved(
                [
                    Frame("open", 0),
                    Frame("data", 0, 0, tensors={"codes": codes}),
                    Frame("end", 0, 1),
                    Frame("end"),
                ]
            )


def test_saved_codes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes of codes, and of frames and streams that bring none."""
    monkeypatch.setattr(SavedCodes, "MAX_BYTES", ROWS.nbytes + 2 * SavedCodes.FRAME_BYTES)
    saved([*code_frames(0, ROWS), Frame("end")])
    for stream in range(2):
        saved([Frame("open", stream), Frame("end", stream, 0), Frame("end")])
    many = [frame for stream in range(9) for frame in (Frame("open", stream), Frame("end", stream, 0))]
    with pytest.raises(BadInputError, match="MiB of codes"):
        saved([*many, Frame("end")])
    with pytest.raises(BadInputError, match="MiB of codes"):
        saved([*code_frames(0, ROWS, ROWS[:1]), Frame("end")])
