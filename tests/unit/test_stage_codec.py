"""The codec as a stage: what it takes, what it gives, what it refuses and where it says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from code_streams import cut, end_row, one_by_one, pipe, sound
from small_codec import CONFIG, WIDTH, audio, codes, stage

from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.stages.base import Drive, Output
from voxtral_pipes.stages.codec import CodecStage


def driven(*outputs: Output, together: int | None = None) -> tuple[np.ndarray, list[str], list[Frame]]:
    """Return the samples of stream 0, what was reported, and the frames after its last samples."""
    said: list[str] = []
    frames = list(Drive(stage(together), pipe({0: outputs}), report=said.append).run())
    rest = [f for f in frames if f.kind not in ("hello", "open", "data")]
    return audio(frames, 0), said, rest


def rows(array: np.ndarray) -> Output:
    return Output(0, 0, {"codes": Tensor.of(array)})


def test_samples_are_those_of_the_codec() -> None:
    drawn = codes(12)
    codec = stage().codec
    expected, _ = codec.step(codec.new_state(), torch.from_numpy(drawn.astype(np.int64))[None])
    samples, said, rest = driven(*one_by_one(drawn))
    np.testing.assert_allclose(samples, expected[0].numpy(), atol=1e-5)
    assert said == [] and [f.kind for f in rest] == ["end", "end"]


def test_frames_of_output_say_when_they_are() -> None:
    frames = list(Drive(stage(), pipe({0: cut(codes(5), [0, 2, 3])})).run())
    samples = CONFIG.frame_samples
    assert frames[0].fields["out"] == {"audio": {"d": "f32", "h": [-1, samples]}}
    data = [f for f in frames if f.kind == "data"]
    assert [(f.seq, f.tick, f.ticks) for f in data] == [(i, samples * i, samples) for i in range(5)]
    assert {f.tensors["audio"].shape for f in data} == {(1, samples)}


@pytest.mark.parametrize("sizes", [[], [3], [4], [1, 1, 1, 1]])
def test_end_audio_ends_the_stream_and_what_follows_is_dropped(sizes: list[int]) -> None:
    drawn = codes(3)
    nonsense = np.zeros((2, WIDTH), np.uint16)
    samples, said, rest = driven(*cut(np.concatenate([drawn, end_row(WIDTH), nonsense]), sizes))
    np.testing.assert_array_equal(samples, driven(*one_by_one(drawn))[0])
    assert said == [] and [(f.kind, f.stream) for f in rest] == [("end", 0), ("end", None)]


def changed(row: int, column: int, value: int) -> np.ndarray:
    drawn = codes(4)
    drawn[row, column] = value
    return drawn


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        (0, 0, "EMPTY_AUDIO"),
        (0, 1, "END_AUDIO"),
        (0, 2 + CONFIG.semantic_size, "52"),
        (0, 65535, "65535"),
        (1, 1, "1"),
        (WIDTH - 1, 2 + CONFIG.acoustic_levels, "23"),
    ],
)
def test_codes_that_are_none_end_the_stream(column: int, value: int, told: str, together: bool) -> None:
    drawn = changed(2, column, value)
    samples, [said], rest = driven(*(cut(drawn) if together else one_by_one(drawn)))
    assert said.startswith("stream 0: audio frame 2: ") and told in said
    np.testing.assert_array_equal(samples, driven(*one_by_one(drawn[:2]))[0])  # what came before is heard
    assert [f.kind for f in rest] == ["error", "end"]


@pytest.mark.parametrize("wrong", range(4, 12))
def test_rows_that_wait_for_their_step_are_heard_before_a_wrong_one(wrong: int) -> None:
    drawn = codes(12)
    drawn[wrong, 0] = 0
    samples, [said], rest = driven(*one_by_one(drawn), together=8)
    assert said.startswith(f"stream 0: audio frame {wrong}: ")
    np.testing.assert_allclose(samples, driven(*one_by_one(drawn[:wrong]))[0], atol=1e-5)
    assert [f.kind for f in rest] == ["error", "end"]
    samples, [said], _ = driven(*one_by_one(drawn[:wrong]), rows(codes(1)[0]), together=8)
    assert "the shape" in said and len(samples) == wrong * CONFIG.frame_samples


@pytest.mark.parametrize("value", [2, 1 + CONFIG.semantic_size])
def test_the_first_and_the_last_code_are_codes(value: int) -> None:
    assert driven(*one_by_one(changed(2, 0, value)))[1] == []


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (Output(0, 0), "no tensor 'codes'"),
        (rows(codes(1).astype(np.int32)), "is i32, not u16"),
        (rows(codes(1)[0]), f"the shape [{WIDTH}], not [n, {WIDTH}]"),
        (rows(codes(1)[:, :-1]), f"the shape [1, {WIDTH - 1}], not [n, {WIDTH}]"),
        (rows(codes(2)[None]), f"not [n, {WIDTH}]"),
    ],
)
def test_other_tensors_are_refused(output: Output, told: str) -> None:
    samples, [said], _ = driven(*one_by_one(codes(2)), output)
    assert told in said
    assert len(samples) == 2 * CONFIG.frame_samples


def test_frames_without_rows_and_streams_without_frames_are_silent() -> None:
    assert len(driven(rows(codes(0)), rows(codes(0)))[0]) == 0
    assert [f.kind for f in driven()[2]] == ["end", "end"]


def test_samples_that_are_no_numbers_are_an_error_of_the_weights() -> None:
    codec = stage().codec
    broken = CodecStage(replace(codec, out=torch.full(codec.out.shape, torch.inf)))
    said: list[str] = []
    list(Drive(broken, pipe({0: one_by_one(codes(1))}), report=said.append).run())
    assert said == [
        "stream 0: audio frame 0: the samples are not finite: the weights are damaged, or --dtype f32 is needed"
    ]


def test_samples_that_are_no_numbers_take_their_step_with_them() -> None:
    codec = stage().codec
    embedding = codec.embedding.clone()
    embedding[7] = torch.nan
    broken = CodecStage(replace(codec, embedding=embedding), together=8)
    drawn = codes(20)
    drawn[:, 0] = 12
    drawn[10, 0] = 7 + 2
    said: list[str] = []
    frames = list(Drive(broken, pipe({0: one_by_one(drawn)}), report=said.append).run())
    [line] = said
    assert "audio frame 8: " in line
    assert len(audio(frames, 0)) == 8 * CONFIG.frame_samples


def test_the_model_is_said_and_checked() -> None:
    model = {"family": "voxtral-tts", "fp": "0123456789abcdef"}
    mine = CodecStage(stage().codec, model)
    frames = list(Drive(mine, pipe({0: one_by_one(codes(1))}, model=model)).run())
    assert frames[0].meta["model"] == model
    with pytest.raises(Exception, match="made with another model"):
        list(Drive(mine, pipe({}, model={**model, "fp": "f" * 16})).run())


def test_published_sizes_are_those_of_the_page() -> None:
    assert sound(3).shape == (3, 37) and sound(3).dtype == np.uint16
