"""vx-peek on frames: the .png, a panel for each stream and tensor."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from id_streams import POSITION
from peeked import Seen, bf16, codes, mels, speech, tensor

from voxtral_pipes.errors import BadInputError, UnsupportedError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models import picture
from voxtral_pipes.models.codes import END_AUDIO
from voxtral_pipes.models.columns import COLUMNS
from voxtral_pipes.models.panels import CodesPanel, HiddenPanel, bin_of
from voxtral_pipes.models.picture import Picture


def png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_a_picture_has_a_panel_for_each_stream() -> None:
    sizes = []
    for streams in (1, 2):
        image, file = Picture(), io.BytesIO()
        for stream in range(streams):
            for frame in mels(30, stream=stream):
                image.add(frame)
        image.add(Frame("mark", 0, meta={"audio_end": 1280 * 20}))
        image.write(file)
        sizes.append(png_size(file.getvalue()))
    assert sizes[1] == (sizes[0][0], 2 * sizes[0][1])


def test_a_picture_survives_values_that_are_no_numbers() -> None:
    image, file = Picture(), io.BytesIO()
    values = np.full((8, 16), np.nan, np.float32)
    values[0, 0] = np.inf
    image.add(Frame("open", 0, meta={"source": "$\\frac 日本 \x1b"}))
    image.add(Frame("data", 0, 0, tensors={"mel": Tensor.of(values)}))
    image.write(file)
    assert png_size(file.getvalue())[0] > 1000


def drawn(frames: Iterable[Frame]) -> tuple[int, int]:
    image, file = Picture(), io.BytesIO()
    assert Seen(frames, image).problems == 0
    image.write(file)
    return png_size(file.getvalue())


def test_a_picture_of_speech_synthesis() -> None:
    states = np.random.default_rng(1).normal(size=(9, 1, 3072)).astype(np.float32)
    rows = [{"hidden": Tensor.of(state), "codes": codes(at % 8)} for at, state in enumerate(states)]
    one = drawn(speech({"codes": row["codes"]} for row in rows))
    assert drawn(speech({"hidden": row["hidden"]} for row in rows)) == one
    assert drawn(speech(rows)) == (one[0], 2 * one[1])


@pytest.mark.parametrize("values", [[0.0], [np.nan] * 3, [np.inf, -np.inf], [3e38, -3e38], [1.0] * 100])
def test_hidden_states_of_any_values_and_width_are_drawn(values: list[float]) -> None:
    drawn(speech([{"hidden": tensor([values])}, {"hidden": bf16([[0x3F80] * len(values)])}]))


@pytest.mark.parametrize(
    "value",
    [codes(), codes(1), codes(65535, acoustic=65535), codes(3, -4, acoustic=-1, dtype=np.int64),
     codes(3, acoustic=0, dtype=np.uint8), Tensor.of(np.full((1, 2), 9, np.int8))],
)  # fmt: skip
def test_codes_of_any_values_and_type_are_drawn(value: Tensor) -> None:
    drawn(speech([{"codes": value}]))


def test_hidden_states_are_pooled_as_power() -> None:
    panel = HiddenPanel()
    values = np.random.default_rng(1).normal(size=(10, 100)).astype(np.float32)
    panel.add(Tensor.of(values[:3]))
    panel.add(Tensor.of(values[3:]))
    assert panel._columns is not None
    edges = [band * 100 // 64 for band in range(65)]
    bands = [np.square(values[:, a:b]).mean(axis=1) for a, b in pairwise(edges)]
    expected = np.column_stack([*bands, np.square(values).mean(axis=1)])
    np.testing.assert_allclose(panel._columns.image(), expected, rtol=1e-5)


def test_long_codes_are_thinned_and_the_end_is_remembered() -> None:
    panel = CodesPanel()
    n_frames = 2 * COLUMNS * 3
    rows = np.random.default_rng(1).integers(2, 23, (n_frames, 37)).astype(np.uint16)
    rows[-1, 0] = END_AUDIO
    for part in np.split(rows, [1, 5000, 5001]):
        panel.add(Tensor.of(part))
    assert panel._columns is not None and panel._columns.group == 4 and panel._end_row == n_frames - 1
    np.testing.assert_array_equal(panel._columns.image(), rows[::4])


def test_the_frequency_axis_is_that_of_the_filters() -> None:
    assert bin_of(0, 128) == -0.5
    assert bin_of(8000, 128) == pytest.approx(128.5)
    # 1000 Hz is 15 mel of 15 + 27 ln 8 / ln 6.4
    assert bin_of(1000, 128) == pytest.approx(129 * 15 / (15 + 27 * np.log(8) / np.log(6.4)) - 0.5)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("mel", tensor([[1.0]]), tensor([1])),
        ("mel", tensor([[1.0]]), tensor([[1]], np.int32)),
        ("mel", tensor([[1.0]]), Tensor.of(np.zeros((1, 5000), np.float32))),
        ("mel", tensor([[1.0]]), tensor([[1, 2]])),
        ("hidden", tensor([[1.0]]), tensor([[1, 2]])),
        ("hidden", tensor([[1.0]]), tensor([[1]], np.int32)),
        ("hidden", tensor([[1.0]]), Tensor.of(np.zeros((1, 70000), np.float32))),
        ("codes", codes(3), tensor([[3, 4]], np.uint16)),
        ("codes", codes(3), tensor([[3.0, 4.0]])),
        ("codes", codes(3), Tensor.of(np.zeros((1, 5000), np.uint16))),
    ],
)
def test_what_cannot_be_drawn_is_left_out_and_said_once(name: str, good: Tensor, bad: Tensor) -> None:
    image = Picture()
    image.add(Frame("data", 0, tensors={name: good}))
    with pytest.raises(BadInputError, match=rf"stream 0: '{name}' .* the \.png leaves it out"):
        image.add(Frame("data", 0, tensors={name: bad}))
    image.add(Frame("data", 0, tensors={name: bad}))
    image.write(io.BytesIO())


def test_more_streams_than_panels() -> None:
    image = Picture()
    for stream in range(picture.MAX_PANELS):
        image.add(Frame("data", stream, 0, 0, POSITION, tensors={"mel": tensor([[1.0]])}))
    with pytest.raises(UnsupportedError, match="more than 8 streams and tensors"):
        image.add(Frame("data", 99, tensors={"mel": tensor([[1.0]])}))
    image.add(Frame("data", 100, tensors={"mel": tensor([[1.0]])}))


def test_nothing_to_draw() -> None:
    with pytest.raises(BadInputError, match="no tensor 'mel' or 'embeds' or 'hidden' or 'codes' came"):
        Picture().write(io.BytesIO())
