"""The reference operations against numpy and the gguf package."""

import os

import gguf
import numpy as np
import pytest
import torch

from voxtral_pipes.errors import UnsupportedError, UsageError
from voxtral_pipes.kernels import dispatch, waiting
from voxtral_pipes.kernels import reference as ref
from voxtral_pipes.kernels.packed import PackedWeight
from voxtral_pipes.kernels.precision import pick_precision

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def pack(weight: np.ndarray, form: str) -> PackedWeight:
    raw = gguf.quantize(weight, TYPES[form])
    blocks = torch.from_numpy(raw.reshape(weight.shape[0], weight.shape[1] // 32, -1).copy())
    return PackedWeight(form, blocks)  # type: ignore[arg-type]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", TYPES)
def test_unpacking_equals_the_gguf_package(form: str) -> None:
    weight = draw(7, 96).numpy()
    packed = pack(weight, form)
    assert packed.shape == (7, 96)
    expected = gguf.dequantize(gguf.quantize(weight, TYPES[form]), TYPES[form])
    assert np.array_equal(ref.dequantize(packed, torch.float32).numpy(), expected)


@pytest.mark.parametrize("form", TYPES)
def test_packed_operations_equal_those_on_unpacked_weights(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ref, "HEAD_ROWS", 4)  # 11 rows in three pieces
    packed = pack(draw(11, 64, seed=1).numpy(), form)
    dense = ref.dequantize(packed, torch.float32)
    x = draw(2, 64, seed=2)
    assert torch.equal(ref.linear(x, packed), ref.linear(x, dense))
    torch.testing.assert_close(ref.head(x, packed), x @ dense.T, atol=1e-5, rtol=0)
    ids = torch.tensor([[3, 0], [10, 3]])
    assert torch.equal(ref.embedding(ids, packed, torch.float32), dense[ids])


def test_the_head_of_bfloat16_weights_is_float32() -> None:
    """Products of bfloat16 numbers summed in float32: equal to float64 far below a bfloat16 step."""
    weight, x = draw(9000, 64, seed=3).bfloat16(), draw(1, 64, seed=4).bfloat16()
    logits = ref.head(x, weight)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), x.double() @ weight.double().T, atol=1e-5, rtol=0)


def test_rms_norm_is_computed_in_float32() -> None:
    x, weight = 100 * draw(5, 48, seed=5).bfloat16(), draw(48, seed=6).bfloat16()
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(ref.rms_norm(x, weight, 1e-5).double(), expected, atol=0, rtol=2**-8)


def test_rotation_turns_neighbouring_pairs() -> None:
    x = draw(1, 2, 3, 4, seed=7)
    angles = torch.tensor([[0.3, 1.2], [2.0, -0.7]])
    out = ref.rotate(x, torch.polar(torch.ones_like(angles), angles))
    for t in range(2):
        for i in range(2):
            a, b = x[0, t, :, 2 * i], x[0, t, :, 2 * i + 1]
            c, s = angles[t, i].cos(), angles[t, i].sin()
            torch.testing.assert_close(out[0, t, :, 2 * i], a * c - b * s)
            torch.testing.assert_close(out[0, t, :, 2 * i + 1], b * c + a * s)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (8, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_groups_heads_like_the_definition(heads: int, kv_heads: int, masked: bool) -> None:
    q, k, v = draw(2, 3, heads, 8, seed=8), draw(2, kv_heads, 5, 8, seed=9), draw(2, kv_heads, 5, 8, seed=10)
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2) if masked else None
    out = ref.attention(q, k, v, mask).view(2, 3, heads, 8)
    for h in range(heads):
        scores = q[:, :, h] @ k[:, h // (heads // kv_heads)].transpose(1, 2) / 8**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        expected = scores.softmax(-1) @ v[:, h // (heads // kv_heads)]
        torch.testing.assert_close(out[:, :, h], expected, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("gpu", "cpu:0", "cuda:x", ""):
        with pytest.raises(UsageError):
            dispatch.pick_device(bad)
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedError, match="--device cpu"):
            dispatch.pick_device("cuda")
    monkeypatch.setenv("VX_KERNELS", "triton")
    with pytest.raises(UnsupportedError, match="VX_KERNELS"):
        dispatch.check_kernels()
    monkeypatch.setenv("VX_KERNELS", "fast")
    with pytest.raises(UsageError):
        dispatch.check_kernels()


def test_auto_takes_float32_while_it_costs_nothing() -> None:
    assert pick_precision("auto", 1 << 20) == "f32"
    assert pick_precision("auto", 1 << 32) == "bf16"
    assert dispatch.torch_dtype(pick_precision("bf16", 1)) == torch.bfloat16
    with pytest.raises(UsageError):
        pick_precision("f16", 1)


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_briefly_unless_the_user_has_chosen(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str]
) -> None:
    for name in waiting.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    waiting.wait_briefly()
    expected = chosen or {"GOMP_SPINCOUNT": waiting.SPINS}
    assert {name: os.environ[name] for name in waiting.VARIABLES if name in os.environ} == expected
    assert all(f"{name}={value}" in waiting.describe() for name, value in expected.items())
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
