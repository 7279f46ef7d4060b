"""vx-peek on frames: the .npz, in which their tensors, ids and ticks are joined."""

from __future__ import annotations

import numpy as np
import pytest
from id_streams import hello
from peeked import Seen, bf16, codes, load, mels, speech, tensor

from voxtral_pipes.errors import VoxError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.collect import NpzCollector
from voxtral_pipes.stages.base import Outgoing, Output


def test_npz_joins_tensors_ids_and_ticks() -> None:
    collector = NpzCollector()
    outgoing = Outgoing("vx-test")
    frames = [hello(), outgoing.open(3, {})]
    one = bf16([[0x3F80]])
    frames += [
        outgoing.data(3, Output(-1280, 1280, {"x": one}, [7])),
        outgoing.data(3, Output(0, 1280, {}, [8, 9])),
        outgoing.data(3, Output(1280, 1280, {"x": one, "../y": tensor(1.5)})),
    ]
    assert Seen([*frames, outgoing.end(3), Frame("end")], collector).problems == 0
    arrays = load(collector)
    assert {key: value.tolist() for key, value in arrays.items()} == {
        "tick_rate_hz": 16000,
        "s3.x": [[1], [1]], "s3.x.rows": [1, 0, 1], "s3.___y": [1.5], "s3.___y.rows": [0, 0, 1],
        "s3.frames.t": [-1280, 0, 1280], "s3.frames.u": [1280] * 3, "s3.frames.n": [0, 1, 2],
        "s3.frames.ids": [7, 8, 9], "s3.frames.n_ids": [1, 2, 0],
    }  # fmt: skip
    assert arrays["s3.x"].dtype == np.float32


@pytest.mark.parametrize("wide", [False, True])
def test_npz_joins_hidden_states_and_codes(wide: bool) -> None:
    states = np.random.default_rng(1).normal(size=(5, 3072)).astype(np.float32)
    words = (states.view(np.uint32) >> 16).astype(np.uint16)
    hidden = [Tensor.of(row[None]) if wide else bf16(words[at][None]) for at, row in enumerate(states)]
    collector = NpzCollector()
    frames = speech({"hidden": each, "codes": codes(at + 2)} for at, each in enumerate(hidden))
    assert Seen(frames, collector).problems == 0
    arrays = load(collector)
    expected = states if wide else (words.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(arrays["s0.hidden"], expected)
    assert arrays["s0.codes"].dtype == np.uint16 and arrays["s0.codes"][:, 0].tolist() == [2, 3, 4, 5, 6]
    assert arrays["s0.frames.t"].tolist() == [0, 1920, 3840, 5760, 7680] and arrays["tick_rate_hz"] == 24000


def test_npz_of_frames_without_numbers() -> None:
    collector = NpzCollector()
    collector.add(Frame("data", 0, seq=2**64 - 1))
    arrays = load(collector)
    assert arrays["s0.frames.t"][0] == -(2**63) and arrays["s0.frames.n"][0] == 2**63 - 1


def test_a_tensor_that_changes_is_kept_up_to_there_and_said_once() -> None:
    collector = NpzCollector()
    frames = [
        Frame("data", 0, n, tensors={"x": tensor(v)})
        for n, v in enumerate([[[1, 2]], [[1]], [[1]], [[3, 4]]])
    ]
    errors = []
    for frame in frames:
        try:
            collector.add(frame)
        except VoxError as error:
            errors.append(str(error))
    assert errors == [
        "stream 0: tensor 'x' from float32[-1,2] to float32[-1,1]; the .npz holds it up to there"
    ]
    arrays = load(collector)
    assert arrays["s0.x"].tolist() == [[1, 2]] and arrays["s0.x.rows"].tolist() == [1, 0, 0, 0]


def test_npz_memory_is_bounded() -> None:
    collector = NpzCollector(max_bytes=1 << 20)
    seen = Seen(mels(2000), collector)
    assert seen.problems == 1 and "more than 1 MiB" in seen.reported[0]
    assert 0 < load(collector)["s0.mel"].nbytes < 1 << 20
