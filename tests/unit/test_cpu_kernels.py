"""kernels/cpu.py: laid out weights against the weights they were made of."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from voxtral_pipes.formats.virtual import VirtualFile
from voxtral_pipes.kernels import cpu, dispatch, int4, reference
from voxtral_pipes.kernels.packed import HeadWeight, Int4Weight, OnednnWeight, PackedWeight

pytestmark = pytest.mark.skipif(
    not cpu.can_lay_out(), reason="this processor or torch has no bfloat16 by oneDNN"
)

BF16 = torch.bfloat16


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(n_out: int, n_in: int, kind: str = "Q4_0", *, never_negative: bool = False) -> PackedWeight:
    """Quantise by ggml's rule, or by the other one in use: d = max / 7, never negative (formats.md section 0)."""
    weights = drawn(n_out, n_in, seed=n_out) / n_in**0.5
    if never_negative:
        blocks = weights.view(n_out, n_in // 32, 32)
        scale = blocks.abs().amax(dim=-1, keepdim=True) / 7
        codes = torch.floor(blocks / scale + 8.5).clamp(0, 15).to(torch.uint8)
        nibbles = codes[..., :16] | (codes[..., 16:] << 4)
        return PackedWeight("q4_0", torch.cat((scale.half().view(torch.uint8), nibbles), dim=-1))
    form = getattr(gguf.GGMLQuantizationType, kind)
    raw = torch.from_numpy(gguf.quantize(weights.numpy(), form))
    return PackedWeight("q4_0" if kind == "Q4_0" else "q8_0", raw.view(n_out, n_in // 32, -1))


def off(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative error of the norm."""
    return float((got.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize(("n_out", "n_in"), [(37, 45), (96, 64), (1, 7), (256, 1024)])
def test_bfloat16_by_onednn_is_f_linear_bit_for_bit(n_out: int, n_in: int, rows: int) -> None:
    weight, x, bias = (
        drawn(n_out, n_in).to(BF16),
        drawn(rows, n_in, seed=1).to(BF16),
        drawn(n_out, seed=2).to(BF16),
    )
    laid = dispatch.prepare(weight, BF16)
    assert isinstance(laid, OnednnWeight) and laid.shape == (n_out, n_in)
    assert torch.equal(dispatch.linear(x, laid), torch.nn.functional.linear(x, weight))
    assert torch.equal(
        dispatch.linear(x[None], laid, bias), torch.nn.functional.linear(x[None], weight, bias)
    )


@pytest.mark.parametrize("never_negative", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7, cpu.INT4_ROWS, cpu.INT4_ROWS + 1])
@pytest.mark.parametrize(("n_out", "n_in"), [(16, 32), (48, 96), (2048, 64), (1040, 128)])
def test_q4_by_the_int4_kernel_costs_no_more_than_bfloat16(
    n_out: int, n_in: int, rows: int, never_negative: bool
) -> None:
    weight, x = packed(n_out, n_in, never_negative=never_negative), drawn(rows, n_in, seed=1).to(BF16)
    laid = dispatch.prepare(weight, BF16)
    assert isinstance(laid, Int4Weight) and laid.shape == (n_out, n_in)
    exact = reference.linear(x.float(), weight)
    assert off(dispatch.linear(x, laid), exact) < 5e-3
    assert off(reference.linear(x, weight), exact) < 5e-3  # the same by plain torch
    assert dispatch.linear(x[None], laid).shape == (1, rows, n_out)


def test_the_int4_kernel_costs_a_quarter_of_a_percent() -> None:
    """Its scales are bfloat16, those of the file float16: the README says by how much products are off."""
    weight, x = packed(1024, 3072), drawn(4, 3072, seed=1).to(BF16)
    laid = dispatch.prepare(weight, BF16)
    assert isinstance(laid, Int4Weight)
    wide = torch.ops.aten._weight_int4pack_mm_for_cpu(x.float(), laid.codes, 32, laid.scales.float())
    exact = reference.linear(x.float(), weight)
    assert 1e-3 < off(wide, exact) < 2.5e-3  # of the scales alone
    assert off(dispatch.linear(x, laid), exact) < 3e-3  # and of rounding the result


@pytest.mark.parametrize(("n_out", "n_in"), [(64, 32), (1024, 96), (192, 3072), (48, 64), (16, 32)])
def test_codes_are_laid_out_as_torch_does_it(n_out: int, n_in: int) -> None:
    weight = packed(n_out, n_in)
    codes = (
        torch.cat((weight.blocks[..., 2:] & 15, weight.blocks[..., 2:] >> 4), dim=-1).int().view(n_out, n_in)
    )
    assert torch.equal(int4.lay_out(weight), torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))


@pytest.mark.parametrize("never_negative", [False, True])
@pytest.mark.parametrize(("n_out", "n_in"), [(64, 32), (1024, 96), (192, 12288)])
def test_codes_unpack_to_what_they_were_made_of(n_out: int, n_in: int, never_negative: bool) -> None:
    weight = packed(n_out, n_in, never_negative=never_negative)
    if not int4.can_unpack(weight):
        pytest.skip("torch lays codes out in another order on this processor")
    room = int4.Room()
    for _ in range(2):
        assert torch.equal(room.dequantize(weight), reference.dequantize(weight, BF16))


def test_where_the_order_is_unknown_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4, "lanes", lambda: 0)
    weight, x = packed(128, 64), drawn(100, 64, seed=1).to(BF16)
    laid = dispatch.prepare(weight, BF16)
    assert off(dispatch.linear(x, laid), reference.linear(x.float(), weight)) < 5e-3
    many = dispatch.prepare(weight, BF16, rows="many")
    assert off(dispatch.linear(x, many), reference.linear(x.float(), weight)) < 5e-3


def test_few_rows_of_a_large_matrix_do_not_depend_on_their_number() -> None:
    weight, x = drawn(1024, 1024).to(BF16), drawn(cpu.FEW_ROWS, 1024, seed=1).to(BF16)
    laid = dispatch.prepare(weight, BF16)
    together = dispatch.linear(x, laid)
    assert off(together, x.float() @ weight.float().T) < 5e-3
    for rows in range(1, cpu.FEW_ROWS):
        assert torch.equal(dispatch.linear(x[:rows], laid), together[:rows])


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_float32_is_laid_out_where_it_is_small(rows: int) -> None:
    weight, x = drawn(96, 64), drawn(rows, 64, seed=1)
    laid = dispatch.prepare(weight, torch.float32, twice=True)
    assert isinstance(laid, OnednnWeight)
    assert off(dispatch.linear(x, laid), x.double() @ weight.double().T) < 1e-6
    assert dispatch.prepare(weight, torch.float32) is weight


def test_a_file_that_is_laid_out_leaves_memory_and_can_be_read_again(tmp_path: Path) -> None:
    weight = packed(2048, 1024)
    (tmp_path / "w").write_bytes(weight.blocks.numpy().tobytes())
    mapped = torch.from_numpy(
        np.frombuffer(VirtualFile([tmp_path / "w"]).view(0, weight.blocks.nbytes), np.uint8)
    )
    again = PackedWeight("q4_0", mapped.view(weight.blocks.shape))

    def resident() -> int:
        held = 0
        for line in Path("/proc/self/smaps").read_text().split(str(tmp_path / "w"))[1:]:
            held += int(line.split("Rss:")[1].split()[0])
        return held

    assert torch.equal(again.blocks, weight.blocks) and resident() > 1000
    dispatch.prepare(again, BF16)
    assert resident() < 100
    assert torch.equal(again.blocks, weight.blocks)


@pytest.mark.parametrize(
    ("kind", "n_out", "many"), [("Q4_0", 37, False), ("Q4_0", 48, True), ("Q8_0", 48, False)]
)
def test_what_the_int4_kernel_is_not_for_becomes_bfloat16(kind: str, n_out: int, many: bool) -> None:
    weight, x = packed(n_out, 64, kind), drawn(3, 64, seed=1).to(BF16)
    laid = dispatch.prepare(weight, BF16, rows="many" if many else "one")
    assert isinstance(laid, OnednnWeight)
    assert off(dispatch.linear(x, laid), reference.linear(x.float(), weight)) < 5e-3


def test_nothing_is_laid_out_in_float32_or_where_plain_torch_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = drawn(16, 32)
    assert dispatch.prepare(weight, torch.float32) is weight
    assert dispatch.prepare(packed(16, 32), torch.float32).__class__ is PackedWeight
    monkeypatch.setenv("VX_KERNELS", "torch")
    assert dispatch.prepare(packed(16, 32), BF16).__class__ is PackedWeight
    assert dispatch.prepare_head(weight.to(BF16), BF16) is not None


@pytest.mark.parametrize("stored", ["bf16", "q4_0"])
def test_the_greatest_logit_is_exact(stored: str) -> None:
    weight = drawn(4096, 64, seed=3).to(BF16) if stored == "bf16" else packed(4096, 64)
    head = dispatch.prepare_head(weight, BF16)
    assert isinstance(head, HeadWeight)
    for seed in range(20):
        x = drawn(2, 64, seed=seed).to(BF16)
        got, exact = dispatch.head(x, head), reference.head(x, weight)
        assert torch.equal(got.argmax(dim=1), exact.argmax(dim=1))
        best = exact.argmax(dim=1, keepdim=True)
        torch.testing.assert_close(got.gather(1, best), exact.gather(1, best), atol=1e-5, rtol=0)
        assert off(got, exact) < 5e-3


def test_a_head_whose_logits_are_all_alike_is_exact_throughout() -> None:
    row = drawn(1, 64).to(BF16)
    weight = row.expand(5000, 64).contiguous()
    weight[4321] *= 1 + 2**-7
    head = dispatch.prepare_head(weight, BF16)
    x = row.clone()
    torch.testing.assert_close(dispatch.head(x, head), reference.head(x, weight), atol=1e-5, rtol=0)
    assert int(dispatch.head(x, head).argmax()) == 4321
