"""The laws of the two heavy stages: any cutting gives the same output, live equals offline, streams do not touch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from asr_models import (
    SMALL,
    ids_of,
    joined,
    pipe_of,
    random_decoder,
    random_encoder,
    rows_as_frames,
    settings,
)
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st

from voxtral_pipes.formats.frame import Frame, Tensor, encode
from voxtral_pipes.stages.base import Drive
from voxtral_pipes.stages.decode import DecodeOptions, DecodeStage
from voxtral_pipes.stages.encode import EncodeStage

TOKENS = 75


@cache
def stages() -> tuple[EncodeStage, DecodeStage]:
    return EncodeStage(random_encoder(), SMALL), DecodeStage(
        random_decoder(), SMALL, options=DecodeOptions(logprobs=True)
    )


@cache
def mel(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((8 * TOKENS, 128)).astype(np.float32)


def encoded(frames: list[Frame]) -> list[Frame]:
    return list(Drive(stages()[0], pipe_of("mel", frames)).run())


def decoded(frames: list[Frame]) -> list[Frame]:
    return list(Drive(stages()[1], pipe_of("embeds", frames)).run())


def mel_stream(cuts=(), live: bool = False, stream: int = 0, rows: np.ndarray | None = None) -> list[Frame]:
    rows = mel() if rows is None else rows
    return rows_as_frames(
        "mel", rows, cuts, settings(live=live), row_ticks=160, stream=stream, mark=(560, 1280 * 70 - 40960)
    )


@cache
def embeds() -> np.ndarray:
    return joined(encoded(mel_stream()), "embeds")


def embeds_stream(cuts=(), stream: int = 0, rows: np.ndarray | None = None, **prompt: Any) -> list[Frame]:
    rows = embeds() if rows is None else rows
    meta = settings(**prompt)
    return rows_as_frames("embeds", rows, cuts, meta, row_ticks=1280, stream=stream, mark=(70, 48640))


PROMPTS = [(6, 32), (6, 0), (1, 1), (0, 5), (30, 20), (2, 60), (15, 50)]
"""Delay and left padding; the window is 50, and the last three prompts are longer, one by its padding alone."""


@cache
def decoded_live(delay: int, left_pad: int) -> tuple[bytes, list[int], np.ndarray]:
    """Return what a live stream of whole embeddings gives: its bytes, ids and log probabilities."""
    frames = decoded(embeds_stream(delay=delay, left_pad=left_pad, live=True))
    return wire(frames), ids_of(frames), joined(frames, "logprob")


def wire(frames: list[Frame]) -> bytes:
    return b"".join(map(encode, frames))


@pytest.mark.parametrize("live", [False, True])
@runs(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 8 * TOKENS - 1), max_size=30))
def test_any_cutting_of_mel_gives_the_same_bytes(live: bool, cuts: list[int]) -> None:
    assert wire(encoded(mel_stream(cuts, live))) == wire(encoded(mel_stream((), live)))


@runs(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, TOKENS - 1), max_size=30))
def test_any_cutting_of_embeds_gives_the_same_bytes(cuts: list[int]) -> None:
    assert wire(decoded(embeds_stream(cuts))) == wire(decoded(embeds_stream(())))


@pytest.mark.parametrize(("delay", "left_pad"), PROMPTS)
@runs(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, TOKENS - 1), max_size=30))
def test_any_cutting_of_live_embeds_gives_the_same_bytes(delay: int, left_pad: int, cuts: list[int]) -> None:
    frames = decoded(embeds_stream(cuts, delay=delay, left_pad=left_pad, live=True))
    assert wire(frames) == decoded_live(delay, left_pad)[0]


@pytest.mark.parametrize(("delay", "left_pad"), PROMPTS)
def test_a_live_prompt_equals_that_of_a_file(delay: int, left_pad: int) -> None:
    """Its positions run in other passes: equal up to rounding, and these models have no narrow margins."""
    frames = decoded(embeds_stream(delay=delay, left_pad=left_pad))
    _, ids, logprobs = decoded_live(delay, left_pad)
    assert ids == ids_of(frames)
    assert len(set(ids)) > 3
    np.testing.assert_allclose(logprobs, joined(frames, "logprob"), atol=1e-4, rtol=0)


def test_one_mel_frame_at_a_time_and_empty_frames() -> None:
    whole = mel_stream()
    single = mel_stream(range(8 * TOKENS))
    empty = Frame("data", 0, 0, 0, 0, {"mel": Tensor.of(np.empty((0, 128), np.float32))})
    numbered = [empty if f.kind == "data" and f.seq == 0 else f for f in single[:1]]
    assert wire(encoded(single)) == wire(encoded(whole))
    assert numbered  # an empty frame in front changes nothing but the numbers of what follows
    frames = list(Drive(stages()[0], pipe_of("mel", [whole[0], empty, *renumbered(whole[1:], 1)])).run())
    assert wire(frames) == wire(encoded(whole))


def renumbered(frames: list[Frame], by: int) -> list[Frame]:
    from dataclasses import replace

    return [replace(f, seq=f.seq + by) if f.seq is not None else f for f in frames]


def test_live_equals_offline() -> None:
    """design.md section 4: embeds within 1e-5, ids equal where the margin exceeds 1e-3."""
    live = joined(encoded(mel_stream(range(0, 8 * TOKENS, 8), live=True)), "embeds")
    np.testing.assert_allclose(live, embeds(), atol=1e-5, rtol=0)
    assert ids_of(decoded(embeds_stream(rows=live, live=True))) == ids_of(decoded(embeds_stream()))


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_chunks_do_not_matter(chunk: int) -> None:
    stage = EncodeStage(stages()[0].encoder, SMALL, chunk_tokens=chunk)
    frames = list(Drive(stage, pipe_of("mel", mel_stream())).run())
    np.testing.assert_allclose(joined(frames, "embeds"), embeds(), atol=1e-5, rtol=0)
    sizes = {f.tensors["embeds"].shape[0] for f in frames if f.kind == "data"}
    assert max(sizes) == chunk


def test_no_look_ahead() -> None:
    """More or other input later never changes what has been said."""
    other = mel().copy()
    other[480:] += 1
    changed = joined(encoded(mel_stream(rows=other)), "embeds")
    assert np.array_equal(changed[:60], embeds()[:60]) or np.allclose(changed[:60], embeds()[:60], atol=1e-6)
    assert not np.allclose(changed[60], embeds()[60], atol=1e-3)
    shorter = ids_of(decoded(embeds_stream(rows=embeds()[:71])))
    assert ids_of(decoded(embeds_stream()))[: len(shorter)] == shorter


def test_a_live_row_comes_with_its_own_mel_frames() -> None:
    """Latency: after token p's eight frames its row is out, nothing waits for the next token."""
    stream, _ = stages()[0].open(0, settings(live=True))
    rows = 0
    for p in range(TOKENS):
        frame = Frame("data", 0, p, 0, 1280, {"mel": Tensor.of(mel()[8 * p : 8 * p + 8])})
        rows += sum(out.tensors["embeds"].shape[0] for out in stream.push(frame))
        if p >= 31:  # the silence in front of the audio goes in one step
            assert rows == p + 1


@runs(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False))
def test_interleaved_streams_do_not_touch(random) -> None:
    """Two streams mixed in one pipe give, each, the bytes they give alone."""
    a = mel_stream(range(0, 600, 24), stream=3)
    b = mel_stream(range(0, 600, 40), live=True, stream=9, rows=mel(1))
    alone = {s: wire([f for f in encoded(frames) if f.stream == s]) for s, frames in ((3, a), (9, b))}
    mixed, left = [], [list(a), list(b)]
    while any(left):
        queue = random.choice([q for q in left if q])
        mixed.append(queue.pop(0))
    both = list(Drive(stages()[0], pipe_of("mel", mixed)).run())
    for s in (3, 9):
        assert wire([f for f in both if f.stream == s]) == alone[s]
    onward = list(Drive(stages()[1], both).run())
    for s, frames in ((3, a), (9, b)):
        single = list(Drive(stages()[1], encoded(frames)).run())
        assert wire([f for f in onward if f.stream == s]) == wire([f for f in single if f.stream == s])


def test_marks_and_levels_travel_with_the_embeddings() -> None:
    levels = np.linspace(-60, -10, TOKENS).astype(np.float32)
    frames = mel_stream(range(0, 600, 64))
    sent = 0
    levelled = []
    for frame in frames:
        if frame.kind == "data":
            n = frame.tensors["mel"].shape[0] // 8
            tensors = {**frame.tensors, "level": Tensor.of(levels[sent : sent + n])}
            frame = Frame("data", frame.stream, frame.seq, frame.tick, frame.ticks, tensors)
            sent += n
        levelled.append(frame)
    out = encoded(levelled)
    assert np.array_equal(joined(out, "level"), levels)
    marks = [i for i, f in enumerate(out) if f.kind == "mark"]
    assert len(marks) == 1 and out[marks[0]].meta == {"audio_end": 1280 * 70 - 40960}
    data_before = [f for f in out[: marks[0]] if f.kind == "data"]
    assert all(f.tick is not None and f.tick < 1280 * 70 - 40960 for f in data_before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_close_their_stream_only(value: float) -> None:
    bad = mel().copy()
    bad[100, 5] = value
    lines: list[str] = []
    mixed = [*mel_stream(range(0, 600, 40), stream=1, rows=bad), *mel_stream(stream=2)]
    drive = Drive(stages()[0], pipe_of("mel", mixed), report=lines.append)
    frames = list(drive.run())
    assert drive.failed and len(lines) == 1 and "NaN" in lines[0]
    assert [f.kind for f in frames if f.stream == 1][-1] == "error"
    assert np.array_equal(joined(frames, "embeds", 2), embeds())
