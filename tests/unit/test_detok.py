from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from id_streams import EOS, N_SPECIAL, PAD, POSITION, WORD, cut, hello, pipe, spell, spoken, vocabulary

from voxtral_pipes.errors import BadInputError, TruncatedError, VoxError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.transcript import FORMATS
from voxtral_pipes.stages.base import Outgoing, Output
from voxtral_pipes.stages.detok import Detok

SPEECH = "Hello the world. | It was 3.5 metres, said Dr. Who"


def run(frames: Iterable[Frame], form: str = "text") -> str:
    detok = Detok(vocabulary(), form, report=pytest.fail)
    text = "".join(detok.run(frames))
    assert not detok.failed
    return text


def one(ids: list[int], form: str = "text", **options: Any) -> str:
    return run(pipe({0: cut(ids, **options)}), form)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Faulty:
    """Runs input with something wrong in it and keeps all that comes out."""

    def __init__(self, frames: Iterable[Frame], form: str = "text") -> None:
        self.reported: list[str] = []
        self.raised: VoxError | None = None
        self.text = ""
        detok = Detok(vocabulary(), form, report=self.reported.append)
        try:
            for text in detok.run(frames):
                self.text += text
        except VoxError as error:
            self.raised = error
        self.failed = detok.failed


# --- text


def test_text_drops_one_leading_space_and_ends_the_line() -> None:
    assert one(spoken("Hello the world")) == "Hello the world\n"
    assert one(spell("  two")) == " two\n"
    assert one(spell("x y")) == "x y\n"


def test_a_stream_without_text_prints_nothing() -> None:
    assert one([]) == one([PAD, WORD, PAD, EOS]) == one(spell(" ")) == ""


def test_each_token_is_one_piece_of_output() -> None:
    ids = [WORD, *spell(" Hello"), *(N_SPECIAL + byte for byte in "é".encode()), PAD, *spell(" world")]
    assert list(Detok(vocabulary(), "text").run(pipe({0: cut(ids)}))) == ["Hello", "é", " world", "\n"]


def test_invalid_and_unfinished_utf8_is_replaced() -> None:
    assert one([N_SPECIAL + 0xFF, N_SPECIAL + 0xC3]) == "\ufffd\ufffd\n"


def test_streams_are_printed_whole_in_the_order_of_open() -> None:
    streams = {
        4: cut(spoken("Hello Hello Hello"), [1] * 9),
        1: cut(spoken("world"), [1, 1]),
        2: cut([PAD]),
        3: cut(spoken("the")),
    }
    texts = list(Detok(vocabulary(), "text").run(pipe(streams)))
    assert "".join(texts) == "Hello Hello Hello\nworld\nthe\n"


def test_the_stream_whose_turn_it_is_goes_out_live() -> None:
    outgoing = Outgoing("vx-test")
    seen: list[str] = []

    def frames() -> Iterator[Frame]:
        yield hello()
        yield outgoing.open(0, {})
        yield outgoing.open(1, {})
        yield outgoing.data(1, Output(0, POSITION, ids=spell(" world")))
        assert seen == []
        yield outgoing.data(0, Output(0, POSITION, ids=spell(" Hello")))
        assert seen == ["Hello"]
        yield outgoing.end(0)
        assert seen == ["Hello", "\n", "world"]
        yield outgoing.data(1, Output(POSITION, POSITION, ids=spell(" the")))
        assert seen[3:] == [" the"]
        yield outgoing.end(1)
        yield Frame("end")

    for text in Detok(vocabulary(), "text").run(frames()):
        seen.append(text)


def test_a_stream_id_may_be_used_again_while_its_first_text_waits() -> None:
    outgoing = Outgoing("vx-test")
    frames = [hello(), outgoing.open(0, {})]
    for word in (" Hello", " the"):
        frames += [
            outgoing.open(1, {}),
            outgoing.data(1, Output(0, POSITION, ids=spell(word))),
            outgoing.end(1),
        ]
    frames += [outgoing.data(0, Output(0, POSITION, ids=spell(" world"))), outgoing.end(0), Frame("end")]
    assert run(frames) == "world\nHello\nthe\n"


# --- jsonl


def test_jsonl_has_a_line_for_each_token() -> None:
    ids = [WORD, *spell(" Hello"), PAD, N_SPECIAL + 0xC3]
    assert lines(one(ids, "jsonl", first=5)) == [
        {
            "stream": 0,
            "token": WORD,
            "special": True,
            "text": "",
            "name": "[STREAMING_WORD]",
            "start": 0,
            "end": 80,
        },
        {"stream": 0, "token": ids[1], "special": False, "text": " Hello", "start": 0, "end": 80},
        {
            "stream": 0,
            "token": PAD,
            "special": True,
            "text": "",
            "name": "[STREAMING_PAD]",
            "start": 80,
            "end": 160,
        },
        {"stream": 0, "token": N_SPECIAL + 0xC3, "special": False, "text": "", "start": 160, "end": 240},
        {"stream": 0, "token": None, "special": False, "text": "\ufffd", "start": 160, "end": 240},
    ]


def test_jsonl_carries_log_probabilities() -> None:
    assert [line["logprob"] for line in lines(one([PAD] * 3, "jsonl", logprobs=True))] == [0, -0.125, -0.25]
    values = Tensor.of(np.array([-np.inf, np.nan, -0.1], np.float32))
    output = Output(0, 3 * POSITION, {"logprob": values}, [PAD] * 3)
    assert [line["logprob"] for line in lines(run(pipe({0: [output]}), "jsonl"))] == [None, None, -0.1]


@pytest.mark.parametrize(
    "values", [np.zeros(2, np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float64)]
)
def test_log_probabilities_must_fit_the_ids(values: np.ndarray[Any, Any]) -> None:
    faulty = Faulty(pipe({0: [Output(0, POSITION, {"logprob": Tensor.of(values)}, [PAD])]}), "jsonl")
    assert faulty.failed and "one for each id" in faulty.reported[0]


def test_the_delay_comes_from_open() -> None:
    def starts(meta: dict[str, Any]) -> list[int]:
        outgoing = Outgoing("vx-test")
        frames = [
            hello(),
            outgoing.open(0, meta),
            *(outgoing.data(0, out) for out in cut([PAD, PAD], first=20)),
        ]
        return [line["start"] for line in lines(run([*frames, outgoing.end(0), Frame("end")], "jsonl"))]

    assert starts({}) == starts({"delay_tokens": 6}) == [1120, 1200]
    assert starts({"delay_tokens": 1}) == [1520, 1600]


def test_without_a_clock_there_are_no_times() -> None:
    output = Output(0, 0, ids=[PAD])
    assert lines(run(pipe({0: [output]}), "jsonl"))[0]["start"] is None
    for form in ("srt", "vtt", "tsv"):
        faulty = Faulty(pipe({0: [Output(0, 0, ids=[N_SPECIAL + 0xC3])]}), form)
        assert faulty.failed and "carry no times" in faulty.reported[0]


# --- subtitles


def test_srt() -> None:
    assert one(spoken(SPEECH), "srt") == (
        "1\n00:00:00,080 --> 00:00:01,080\nHello the world.\n\n"
        "2\n00:00:01,760 --> 00:00:05,200\nIt was 3.5 metres, said Dr. Who\n\n"
    )


def test_vtt() -> None:
    assert one(spoken("a<b & c-->d"), "vtt") == (
        "WEBVTT\n\n00:00:00.160 --> 00:00:01.360\na&lt;b &amp; c--&gt;d\n\n"
    )
    assert one([], "vtt") == "WEBVTT\n\n"


def test_tsv() -> None:
    tabbed = [*spell(" a\tb\nc"), *[PAD] * 20, *spell(" d")]
    assert one(tabbed, "tsv") == "start\tend\ttext\n80\t1080\ta b c\n2160\t3160\td\n"


def test_srt_does_not_let_text_look_like_a_time_line() -> None:
    assert "a->b" in one(spell(" a-->b"), "srt")


def test_hours_are_counted_on() -> None:
    ids = spell(" x")
    assert "100:00:00,000 --> 100:00:01,000" in one(ids, "srt", first=100 * 45000 + 6 - 1)


def test_cues_are_numbered_through_all_streams_and_warned_about() -> None:
    warned: list[str] = []
    streams = {0: cut(spoken("Hello"), [1, 1]), 1: cut(spoken("world"))}
    text = "".join(Detok(vocabulary(), "srt", warn=warned.append).run(pipe(streams)))
    assert [block.split("\n")[0] for block in text.split("\n\n")[:-1]] == ["1", "2"]
    assert text.index("Hello") < text.index("world")
    assert warned == ["several streams in one srt output: the times of each begin at 0"]


def test_a_cue_comes_as_soon_as_it_is_complete() -> None:
    detok = Detok(vocabulary(), "tsv")
    seen: list[str] = []

    def frames() -> Iterator[Frame]:
        outgoing = Outgoing("vx-test")
        yield hello()
        yield outgoing.open(0, {})
        for position, token in enumerate([*spell(" Hello"), *[PAD] * 11]):
            yield outgoing.data(0, Output(POSITION * (position + 6), POSITION, ids=[token]))
            assert len(seen) == (1 if position < 11 else 2)
        yield outgoing.end(0)
        yield Frame("end")

    for text in detok.run(frames()):
        seen.append(text)
    assert seen == ["start\tend\ttext\n", "0\t880\tHello\n"]


# --- what goes wrong


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_stream_is_printed_as_far_as_it_came(form: str) -> None:
    whole = one(spoken("Hello the world"), form)
    faulty = Faulty(pipe({0: cut(spoken("Hello the world"))}, ended=False), form)
    assert faulty.text == whole
    assert isinstance(faulty.raised, TruncatedError)


def test_held_streams_are_printed_when_the_input_breaks_off() -> None:
    faulty = Faulty(pipe({0: cut(spoken("Hello")), 1: cut(spoken("world"))}, ended=False))
    assert faulty.text == "Hello\nworld\n"


def test_an_unknown_id_ends_its_stream_only() -> None:
    bad = [*spell(" Hello"), 10**6, *spell(" world")]
    faulty = Faulty(pipe({0: cut(bad, [1, 1]), 1: cut(spoken("the"), [1])}))
    assert faulty.failed and faulty.raised is None
    assert faulty.text == "Hello\nthe\n"
    assert len(faulty.reported) == 1 and faulty.reported[0].startswith("stream 0: token id 1000000 is not in")


@pytest.mark.parametrize("delay", [-1, 1 << 40, True, "6", None, 6.0])
def test_a_senseless_delay_is_refused(delay: Any) -> None:
    outgoing = Outgoing("vx-test")
    frames = [
        hello(),
        outgoing.open(0, {"delay_tokens": delay}),
        outgoing.data(0, Output(0, POSITION, ids=[PAD])),
    ]
    faulty = Faulty([*frames, outgoing.end(0), Frame("end")])
    assert faulty.failed and "delay" in faulty.reported[0] and faulty.text == ""


@pytest.mark.parametrize("fatal", [True, False])
def test_an_error_from_before_ends_what_it_says(fatal: bool) -> None:
    outgoing = Outgoing("vx-test")
    frames = [hello(), outgoing.open(0, {}), outgoing.open(1, {})]
    frames += [outgoing.data(stream, Output(0, POSITION, ids=spell(" Hello"))) for stream in (0, 1)]
    error = BadInputError("lost")
    frames += [outgoing.error(error)] if fatal else [outgoing.error(error, 0), outgoing.end(1), Frame("end")]
    faulty = Faulty(frames)
    assert faulty.text == "Hello\nHello\n"
    assert faulty.failed and faulty.raised is None and faulty.reported == []


def test_frames_without_ids_are_refused() -> None:
    faulty = Faulty(pipe({0: [Output(0, POSITION)]}))
    assert faulty.failed and "no token ids" in faulty.reported[0]


def test_another_kind_of_stream_is_refused_by_name() -> None:
    faulty = Faulty([hello(("mel",))])
    assert "vx-detok reads token ids ('i'), and vx-test" in str(faulty.raised)


def test_marks_and_unknown_kinds_are_dropped() -> None:
    frames = list(pipe({0: cut(spoken("Hello"))}))
    frames[2:2] = [Frame("mark", stream=0, meta={"audio_end": 5}), Frame("mark"), Frame("news", raw=b"\x80")]
    assert run(frames) == "Hello\n"


def test_endless_empty_streams_behind_a_long_one_leave_nothing_behind() -> None:
    detok = Detok(vocabulary(), "text")
    outgoing = Outgoing("vx-test")

    def frames() -> Iterator[Frame]:
        yield hello()
        yield outgoing.open(0, {})
        for stream in range(1, 500):
            yield outgoing.open(stream, {})
            yield outgoing.end(stream)
        assert len(detok._turns) == 1
        yield outgoing.end(0)
        yield Frame("end")

    assert list(detok.run(frames())) == []
