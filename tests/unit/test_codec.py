"""The codec decoder against code we did not write, and against itself cut otherwise."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tts_models import SMALL_CODEC, random_codes, random_tensors

from voxtral_pipes.config import CodecConfig
from voxtral_pipes.models.codec import Codec, alibi_slopes, codec_shapes, fold_weight_norm

GOLDEN = Path(__file__).parents[1] / "golden" / "codec.npz"
FRAMES = 40


@cache
def codec() -> Codec:
    return Codec.of(random_tensors(codec_shapes(SMALL_CODEC)), SMALL_CODEC)


def decoded(codes: torch.Tensor, cuts: tuple[int, ...] = ()) -> torch.Tensor:
    state = codec().new_state()
    edges = sorted({0, codes.shape[1], *cuts})
    pieces = []
    for first, last in pairwise(edges):
        samples, state = codec().step(state, codes[:, first:last])
        pieces.append(samples)
    return torch.cat(pieces, 1)


@cache
def whole() -> torch.Tensor:
    return decoded(random_codes(SMALL_CODEC, FRAMES))


def test_the_waveform_equals_the_reference() -> None:
    """tts.md section 14: 5e-6 absolute at a peak of 1; tests/golden/README.md says how the reference was run."""
    audio = np.load(GOLDEN)["audio"]
    assert audio.shape == (FRAMES * SMALL_CODEC.frame_samples,)
    peak = np.abs(audio).max()
    assert 0.1 < peak < 100
    np.testing.assert_allclose(whole()[0].numpy(), audio, atol=5e-6 * max(1.0, peak), rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, FRAMES - 1), max_size=12))
def test_any_cutting_into_steps_gives_the_same_waveform(cuts: list[int]) -> None:
    torch.testing.assert_close(
        decoded(random_codes(SMALL_CODEC, FRAMES), tuple(cuts)), whole(), atol=1e-5, rtol=0
    )


def test_one_frame_at_a_time_and_no_look_ahead() -> None:
    codes = random_codes(SMALL_CODEC, FRAMES)
    single = decoded(codes, tuple(range(FRAMES)))
    torch.testing.assert_close(single, whole(), atol=1e-5, rtol=0)
    other = codes.clone()
    other[:, 30:] = random_codes(SMALL_CODEC, FRAMES, seed=2)[:, 30:]
    changed = decoded(other, tuple(range(FRAMES)))
    samples = SMALL_CODEC.frame_samples
    assert torch.equal(changed[:, : 30 * samples], single[:, : 30 * samples])
    assert not torch.allclose(changed[:, 30 * samples :], single[:, 30 * samples :], atol=1e-3)


def test_rows_of_a_batch_do_not_touch() -> None:
    codes = torch.cat([random_codes(SMALL_CODEC, 9, seed) for seed in (3, 4)])
    both, _ = codec().step(codec().new_state(), codes)
    for row in range(2):
        alone, _ = codec().step(codec().new_state(), codes[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=0)


def test_the_state_stays_small() -> None:
    """tts.md section 10: W keys and values a layer, two latents, one column a doubling, six before the output."""
    state = codec().new_state()
    for first in range(0, FRAMES, 5):
        _, state = codec().step(state, random_codes(SMALL_CODEC, FRAMES)[:, first : first + 5])
    held = {where: keys.shape[2] for where, (keys, _) in state.keys.items()}
    assert held == {(0, 0): 2, (1, 0): 4, (1, 1): 4, (2, 0): 8, (3, 0): 16, (3, 1): 16}
    assert state.latent_tail is not None and state.latent_tail.shape[2] == 2
    assert state.out_tail is not None and state.out_tail.shape[2] == 6
    assert [tail.shape[2] for tail in state.up_tails.values()] == [1, 1, 1]


def test_folded_weights_are_read_as_well() -> None:
    tensors = random_tensors(codec_shapes(SMALL_CODEC))
    folded = {}
    for name, tensor in tensors.items():
        if name.endswith("original0"):
            stem = name.removesuffix("original0")
            weight = fold_weight_norm(tensor, tensors[f"{stem}original1"])
            folded[stem.replace("parametrizations.weight.", "weight")] = weight
        elif not name.endswith("original1"):
            folded[name] = tensor
    codes = random_codes(SMALL_CODEC, 6)
    again = Codec.of(folded, SMALL_CODEC)
    assert torch.equal(again.step(again.new_state(), codes)[0], codec().step(codec().new_state(), codes)[0])


def test_weight_norm_is_torchs() -> None:
    """For a doubling dimension 0 is the input one: a square shape would hide the mistake."""
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(3, 5, 4))
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.7)
    original = conv.parametrizations.weight
    torch.testing.assert_close(fold_weight_norm(original.original0, original.original1), conv.weight)


@pytest.mark.parametrize(("heads", "slopes"), [(8, [2.0**-h for h in range(8)]), (2, [1.0, 1 / 16])])
def test_slopes_begin_at_one(heads: int, slopes: list[float]) -> None:
    assert alibi_slopes(heads).tolist() == slopes


def test_the_published_shapes_add_up() -> None:
    """tts.md section 12."""
    shapes = codec_shapes(CodecConfig())
    assert len(shapes) == 116
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 151_576_816
