"""What must hold for any ids, cut in any way: the laws of vx-detok."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from id_streams import N_SPECIAL, PAD, WORD, cut, pipe, vocabulary

from voxtral_pipes.models.transcript import FORMATS
from voxtral_pipes.stages.detok import Detok

VOCABULARY = vocabulary()
TOKENS = st.one_of(
    st.integers(0, VOCABULARY.vocab_size - 1),
    st.sampled_from([PAD, WORD]),
    st.sampled_from([N_SPECIAL + byte for byte in " .,。😀é日\n".encode()]),
    st.integers(N_SPECIAL + 256, VOCABULARY.vocab_size - 1),
)
IDS = st.lists(TOKENS, max_size=80)
SIZES = st.lists(st.integers(0, 5), max_size=30)

quick = settings(max_examples=120, deadline=None)


def run(form: str, streams: dict[int, tuple[list[int], list[int]]], *, interleaved: bool = True) -> str:
    outputs = {stream: cut(ids, sizes, logprobs=True) for stream, (ids, sizes) in streams.items()}
    return "".join(Detok(VOCABULARY, form).run(pipe(outputs, interleaved=interleaved)))


@pytest.mark.parametrize("form", FORMATS)
@quick
@given(ids=IDS, sizes=SIZES)
def test_any_cutting_gives_the_same_output(form: str, ids: list[int], sizes: list[int]) -> None:
    assert run(form, {0: (ids, sizes)}) == run(form, {0: (ids, [])})


@quick
@given(ids=IDS, more=IDS)
def test_more_input_never_changes_earlier_text(ids: list[int], more: list[int]) -> None:
    shorter = list(Detok(VOCABULARY, "jsonl").run(pipe({0: cut(ids)}, ended=True)))[: len(ids)]
    assert list(Detok(VOCABULARY, "jsonl").run(pipe({0: cut(ids + more)})))[: len(ids)] == shorter


@quick
@given(ids=IDS, sizes=SIZES)
def test_the_pieces_are_the_whole(ids: list[int], sizes: list[int]) -> None:
    whole = b"".join(map(VOCABULARY.token_bytes, ids)).decode(errors="replace")
    pieces = [json.loads(line)["text"] for line in run("jsonl", {0: (ids, sizes)}).split("\n")[:-1]]
    assert "".join(pieces) == whole
    printed = whole.removeprefix(" ")
    assert run("text", {0: (ids, sizes)}) == (f"{printed}\n" if printed else "")


@quick
@given(streams=st.dictionaries(st.integers(0, 9), st.tuples(IDS, SIZES), min_size=1, max_size=4))
def test_interleaved_streams_do_not_touch(streams: dict[int, tuple[list[int], list[int]]]) -> None:
    def alone(form: str, stream: int) -> str:
        return run(form, {stream: streams[stream]})

    lines = run("jsonl", streams).split("\n")[:-1]
    for stream in streams:
        own = [line for line in lines if json.loads(line)["stream"] == stream]
        assert own == alone("jsonl", stream).split("\n")[:-1]
    assert run("text", streams) == "".join(alone("text", stream) for stream in streams)
    head = "WEBVTT\n\n"
    assert run("vtt", streams) == head + "".join(
        alone("vtt", stream).removeprefix(head) for stream in streams
    )
    for form in FORMATS[2:]:
        assert run(form, streams) == run(form, streams, interleaved=False)


@quick
@given(ids=IDS)
def test_cues_hold_all_text_in_order_without_overlap(ids: list[int]) -> None:
    whole = b"".join(map(VOCABULARY.token_bytes, ids)).decode(errors="replace")
    rows = [line.split("\t") for line in run("tsv", {0: (ids, [])}).split("\n")[1:-1]]
    shown = "".join(text for _, _, text in rows)
    kept = [char for char in whole if not char.isspace() and (char >= "\xa0" or " " < char < "\x7f")]
    assert shown.replace(" ", "") == "".join(kept)
    times = [(int(start), int(end)) for start, end, _ in rows]
    assert all(start < end for start, end in times)
    assert all(before[1] <= after[0] for before, after in pairwise(times))
