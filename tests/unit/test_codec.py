"""The codec decoder against the reference's published module, cut in any way, and each known mistake against the same.

tests/golden/README.md says how the reference was run.  A mistake some port has made (tts.md section 13) is made here on
purpose: the comparison that our code passes must then fail, or it would prove nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tts_models import (
    CODEC_FRAMES,
    CODECS,
    DEEP_CODEC,
    SMALL_BACKBONE,
    SMALL_CODEC,
    random_codes,
    random_codes_of,
    random_tensors,
)

from voxtral_pipes.config import CodecConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.models import codec as module
from voxtral_pipes.models.backbone import Backbone
from voxtral_pipes.models.codec import (
    COLUMNS,
    LATENTS,
    Codec,
    CodecLayer,
    CodecState,
    alibi_slopes,
    fold_weight_norm,
)
from voxtral_pipes.models.tts_shapes import CODE_TABLE, UP_KERNEL, backbone_shapes, codec_shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "codec.npz"
TOLERANCE = 1e-5
"""Of samples, whose peak is about 3."""
CLEAR = 1000 * TOLERANCE
"""What a mistake must change at least, somewhere."""
FRAMES = CODEC_FRAMES


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def fresh(config: CodecConfig) -> Codec:
    return Codec.of(random_tensors(codec_shapes(config)), config)


@cache
def codec(name: str = "small") -> Codec:
    return fresh(CODECS[name])


def decoded(model: Codec, codes: Tensor, cuts: tuple[int, ...] = ()) -> Tensor:
    state = model.new_state()
    pieces = []
    for first, last in pairwise(sorted({0, codes.shape[1], *cuts})):
        samples, state = model.step(state, codes[:, first:last])
        pieces.append(samples)
    return torch.cat(pieces, 1)


def errors(model: Codec, name: str, cuts: tuple[int, ...] = ()) -> np.ndarray:
    """Decode and return the greatest distance from the reference in each frame; infinite where it is no number."""
    audio = decoded(model, random_codes(CODECS[name], FRAMES), cuts)[0].numpy()
    distance = np.abs(audio - golden()[name]).reshape(FRAMES, -1).max(axis=1)
    return np.where(np.isnan(distance), np.inf, distance)


def test_the_golden_file_is_of_the_reference() -> None:
    assert str(golden()["made_with"]).startswith("vllm-omni 0.30.0, ")


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (1, 2, 3), tuple(range(FRAMES))], ids=len)
@pytest.mark.parametrize("name", CODECS)
def test_the_waveform_equals_the_reference(name: str, cuts: tuple[int, ...]) -> None:
    """tts.md section 14: 5e-6 at a peak of 1, from the first frame on; every window is many times exceeded."""
    assert golden()[name].shape == (FRAMES * CODECS[name].frame_samples,)
    assert 1 < np.abs(golden()[name]).max() < 10
    assert errors(codec(name), name, cuts).max() < TOLERANCE


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(CODECS)), st.lists(st.integers(1, FRAMES - 1), max_size=12))
def test_any_cutting_into_steps_gives_the_waveform_of_the_reference(name: str, cuts: list[int]) -> None:
    assert errors(codec(name), name, tuple(cuts)).max() < TOLERANCE


def slopes_from_a_half(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "alibi_slopes", lambda heads: 2.0 ** (-8 * (torch.arange(heads) + 1) / heads))


def slopes_of_no_power_of_two(patch: pytest.MonkeyPatch) -> None:
    """Right for 8 heads, as published, but not what the reference does for 3."""
    patch.setattr(module, "alibi_slopes", lambda heads: 2.0 ** (-8 * torch.arange(heads) / heads))


def window_off_by(keys: int) -> Callable[[pytest.MonkeyPatch], None]:
    def make(patch: pytest.MonkeyPatch) -> None:
        right = Codec._attend

        def wrong(
            model: Codec, state: CodecState, where: tuple[int, int], layer: CodecLayer, x: Tensor, window: int
        ) -> Tensor:
            return right(model, state, where, layer, x, window + keys)

        patch.setattr(Codec, "_attend", wrong)

    return make


def first_pad(pad: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Make the two latents before the first frame from all of them, [B, latent, n]."""

    def make(patch: pytest.MonkeyPatch) -> None:
        right = Codec._conv_first

        def wrong(model: Codec, state: CodecState, x: Tensor) -> Tensor:
            state.hold(LATENTS, pad(x))
            return right(model, state, x)

        patch.setattr(Codec, "_conv_first", wrong)

    return make


def out_pad(pad: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Make the six columns before the first frame's from all of them, [B, dim, 8 n]."""

    def make(patch: pytest.MonkeyPatch) -> None:
        right = Codec._conv_out

        def wrong(model: Codec, state: CodecState, x: Tensor) -> Tensor:
            state.hold(COLUMNS, pad(x))
            return right(model, state, x)

        patch.setattr(Codec, "_conv_out", wrong)

    return make


def norm_per_head(patch: pytest.MonkeyPatch) -> None:
    right, head_dim = ops.rms_norm, SMALL_CODEC.head_dim

    def wrong(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if eps != SMALL_CODEC.qk_norm_eps:
            return right(x, weight, eps)
        return right(x.unflatten(-1, (-1, head_dim)), torch.ones(head_dim), eps).flatten(-2) * weight

    patch.setattr(ops, "rms_norm", wrong)


def eps_not(published: float, other: float) -> Callable[[pytest.MonkeyPatch], None]:
    def make(patch: pytest.MonkeyPatch) -> None:
        right = ops.rms_norm

        def wrong(x: Tensor, weight: Tensor, eps: float) -> Tensor:
            return right(x, weight, other if eps == published else eps)

        patch.setattr(ops, "rms_norm", wrong)

    return make


def floor(least: float) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(module, "USAGE_FLOOR", least)


def norm_per_output(patch: pytest.MonkeyPatch) -> None:
    """Take dimension 1 of a doubling, its output, for the one of the weight norm."""

    def wrong(gain: Tensor, direction: Tensor) -> Tensor:
        if direction.shape[2] != UP_KERNEL:
            return fold_weight_norm(gain, direction)
        return fold_weight_norm(gain, direction.transpose(0, 1)).transpose(0, 1)

    patch.setattr(module, "fold_weight_norm", wrong)


def first_outputs_dropped(patch: pytest.MonkeyPatch) -> None:
    """Drop the first outputs of a doubling where the last ones go: it then looks ahead."""

    right = Codec._double

    def wrong(model: Codec, state: CodecState, number: int, x: Tensor) -> Tensor:
        return right(model, state, number, torch.cat((x, torch.zeros_like(x[:, :, :1])), dim=2))[:, :, 2:]

    patch.setattr(Codec, "_double", wrong)


MISTAKES = {
    "slopes from 2^(-8/H)": slopes_from_a_half,
    "W keys": window_off_by(-1),
    "W + 2 keys": window_off_by(1),
    "first pad reflects": first_pad(lambda x: x[:, :, 1:3].flip(2)),
    "first pad is zero": first_pad(lambda x: torch.zeros_like(x[:, :, :2])),
    "output pad is zero": out_pad(lambda x: torch.zeros_like(x[:, :, :6])),
    "output pad replicates": out_pad(lambda x: x[:, :, :1].expand(-1, -1, 6)),
    "output pad repeats the edge": out_pad(lambda x: x[:, :, :6].flip(2)),
    "norm of q and k per head": norm_per_head,
    "eps 1e-5 of q and k": eps_not(SMALL_CODEC.qk_norm_eps, 1e-5),
    "eps 1e-5 of layers": eps_not(SMALL_CODEC.norm_eps, 1e-5),
    "usage floor 1e-8": floor(1e-8),
    "no usage floor": floor(0.0),
    "usage floor 1e-3": floor(1e-3),
    "weight norm per output": norm_per_output,
    "first outputs dropped": first_outputs_dropped,
}
AT_THE_START = [name for name in MISTAKES if "pad" in name]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_known_mistake_shows(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MISTAKES[mistake](monkeypatch)
    wrong = errors(fresh(SMALL_CODEC), "small")
    assert wrong.max() > CLEAR
    assert mistake not in AT_THE_START or wrong[0] > CLEAR
    if mistake.startswith("output pad"):
        assert wrong[1:].max() < TOLERANCE  # it is the first frame that tells


def test_slopes_of_three_heads_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    slopes_of_no_power_of_two(monkeypatch)
    assert errors(fresh(CODECS["odd"]), "odd").max() > CLEAR


def test_beginning_anew_shows() -> None:
    """The reference's own helpers begin cold every 375 frames; section 10 of tts.md is exact."""
    codes = random_codes(SMALL_CODEC, FRAMES)
    anew = torch.cat([decoded(codec(), part) for part in codes.split(24, dim=1)], 1)
    wrong = np.abs(anew[0].numpy() - golden()["small"]).reshape(FRAMES, -1).max(axis=1)
    assert wrong[:24].max() < TOLERANCE and wrong[24] > CLEAR


def test_there_is_no_look_ahead() -> None:
    codes = random_codes(SMALL_CODEC, FRAMES)
    other = codes.clone()
    other[:, 30:] = random_codes(SMALL_CODEC, FRAMES, seed=2)[:, 30:]
    one, two = (decoded(codec(), frames).reshape(FRAMES, -1) for frames in (codes, other))
    assert torch.equal(one[:30], two[:30])
    assert (one[30:] - two[30:]).abs().amax(dim=1).min() > CLEAR


@pytest.mark.parametrize(("context", "enough"), [(16, False), (20, False), (21, True)])
def test_frames_reach_21_back(context: int, enough: bool) -> None:
    """Decoding anew needs 21 frames before (tts.md sections 10 and 13), not 16 or 20.

    Attention that outweighs the residuals, and slopes turned round so that the furthest key counts most, show what
    hardly matters otherwise.
    """
    tensors = random_tensors(codec_shapes(DEEP_CODEC))
    tensors |= {name: 5 * tensor for name, tensor in tensors.items() if name.endswith("attention_scale")}
    model = Codec.of(tensors, DEEP_CODEC)
    model = replace(model, slopes=-20 * torch.ones_like(model.slopes))
    codes = random_codes(DEEP_CODEC, FRAMES)
    last = slice(-DEEP_CODEC.frame_samples, None)
    anew = decoded(model, codes[:, -1 - context :])[:, last]
    wrong = float((anew - decoded(model, codes)[:, last]).abs().max())
    assert wrong < 3 * TOLERANCE if enough else wrong > 300 * TOLERANCE  # of samples up to 17


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
    layers = {(0, 0): 2, (1, 0): 4, (1, 1): 4, (2, 0): 8, (3, 0): 16, (3, 1): 16}
    expected = {(name, *where): keys for where, keys in layers.items() for name in ("keys", "values")}
    expected |= {LATENTS: 2, COLUMNS: 6, **{("doubling", number, 0): 1 for number in (1, 2, 3)}}
    axes = {"keys": 1, "values": 1}
    assert {key: value.shape[axes.get(key[0], 2)] for key, value in state.held.items()} == expected


def test_ten_thousand_frames_in_flat_memory() -> None:
    """13 minutes: what is carried does not grow, and the last frames are what their own past makes them."""
    model, state = codec(), codec().new_state()
    codes = random_codes(SMALL_CODEC, 10_000, seed=9)
    sizes, tail = set(), torch.empty(0)
    for first in range(0, 10_000, 40):
        samples, state = model.step(state, codes[:, first : first + 40])
        sizes.add(sum(held.untyped_storage().nbytes() for held in state.held.values()))
        tail = samples
    assert len(sizes) == 1
    anew, _ = model.step(model.new_state(), codes[:, -40 - 21 :])
    torch.testing.assert_close(tail, anew[:, -tail.shape[1] :], atol=1e-4, rtol=0)


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


def test_embedded_codes_equal_the_reference() -> None:
    """The reference keeps their table beside the codec; each wrong place of the codebooks in it shows."""
    c = SMALL_BACKBONE
    tensors = random_tensors(backbone_shapes(c))
    model = Backbone.of(tensors, c)
    codes = random_codes_of(c.semantic_size, c.acoustic_levels, c.acoustic_dim, len(golden()["embedded"]))
    np.testing.assert_allclose(model.embed_codes(codes)[0].numpy(), golden()["embedded"], atol=1e-5, rtol=0)
    book = torch.arange(c.acoustic_dim)
    for first, others in (
        (128, 23 * book),  # the semantic rows padded apart
        (52, 21 * book),  # no rows for specials
        (50, 23 * book),  # specials at the end
        (0, 23 * book),
    ):
        offsets = torch.cat((torch.zeros(1, dtype=torch.int64), first + others))
        table = tensors[CODE_TABLE].repeat(2, 1)  # what lies beyond its end
        wrong = replace(model, offsets=offsets, code_table=table).embed_codes(codes)[0].numpy()
        assert np.abs(wrong - golden()["embedded"]).max() > 0.1


@pytest.mark.parametrize(("heads", "slopes"), [(8, [2.0**-h for h in range(8)]), (2, [1.0, 1 / 16])])
def test_slopes_begin_at_one(heads: int, slopes: list[float]) -> None:
    assert alibi_slopes(heads).tolist() == slopes


def test_the_published_shapes_add_up() -> None:
    """tts.md section 12."""
    shapes = codec_shapes(CodecConfig())
    assert len(shapes) == 116
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 151_576_816
