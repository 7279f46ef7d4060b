"""Matrices laid out for the CPU's own instructions: bfloat16 by oneDNN, Q4_0 by torch's int4 kernel.

At batch 1 a step is reading weights.  F.linear reaches about 60 % of the memory's speed with bfloat16, since oneDNN
wants its own order of the weights; laid out once, it reaches all of it.  Q4_0 maps onto the int4 kernel exactly but for
the scales, which it keeps in bfloat16 (float16 in the file): 0.24 % of the result's norm, as much as bfloat16
arithmetic costs anyway.  Both are private copies, made when a model is loaded; VX_KERNELS=torch does without, and is
exact for Q4_0.

The operators are private ones of torch, of the same name and meaning from 2.11 to 2.13; `can_lay_out` asks for them.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.formats.virtual import forget_mapped
from voxtral_pipes.kernels import int4, reference
from voxtral_pipes.kernels.packed import (
    BLOCK_WEIGHTS,
    HeadWeight,
    Int4Weight,
    OnednnWeight,
    PackedWeight,
    Weight,
)

INT4_ROWS = 64
"""Up to this many rows the int4 kernel is faster than to unpack the weights for one product."""
INT4_OUT = 16
"""The int4 kernel wants outputs in multiples of this."""
FEW_ROWS = 6
"""oneDNN reads weights from memory in another order, and a quarter faster, for so many rows than for one."""
LARGE = 1 << 20
"""Weights of a matrix that is mostly read from memory."""
CANDIDATE_SHARE = 1 / 16
"""Of the greatest logit: further below it than that, a logit of rounded arithmetic cannot be the greatest."""
MAX_CANDIDATES = 4096

_ROOM = int4.Room()


@cache
def can_lay_out() -> bool:
    """Tell whether torch and the processor have what this module needs."""
    return bool(
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
        and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def lay_out(weight: Tensor | PackedWeight, *, many_rows: bool) -> Weight:
    """Return a matrix in the form that is fastest here, for bfloat16 or, if it is float32, for that; a private copy.

    With `many_rows` the weight will mostly be multiplied by more rows than the int4 kernel takes at a time, which are
    four: Q4_0 becomes bfloat16.
    """
    laid: Weight
    if isinstance(weight, Tensor):
        if weight.dtype not in (torch.bfloat16, torch.float32) or weight.ndim != 2:
            return weight
        laid = _onednn(weight)
    elif weight.format == "q4_0" and not many_rows and weight.shape[0] % INT4_OUT == 0:
        laid = int4_of(weight)
    else:
        laid = _onednn(_unpacked(weight))
    stored = weight if isinstance(weight, Tensor) else weight.blocks
    forget_mapped(stored.data_ptr(), stored.nbytes)
    return laid


def _onednn(weight: Tensor) -> OnednnWeight:
    return OnednnWeight(torch.ops.mkldnn._reorder_linear_weight(weight, 1), tuple(weight.shape))


def _unpacked(weight: PackedWeight) -> Tensor:
    if weight.format == "q4_0" and int4.can_unpack(weight):
        return _ROOM.dequantize(weight)
    return reference.dequantize(weight, torch.bfloat16)


def int4_of(weight: PackedWeight) -> Int4Weight:
    """Lay Q4_0 out for the int4 kernel: value = (code - 8) * scale, which is what it computes where zero is 0."""
    scales = weight.blocks[..., :2].contiguous().view(torch.float16)[..., 0].to(torch.bfloat16).t()
    both = torch.stack((scales, torch.zeros_like(scales)), dim=-1).contiguous()
    return Int4Weight(int4.lay_out(weight), both)


def linear(x: Tensor, weight: OnednnWeight | Int4Weight, bias: Tensor | None) -> Tensor:
    """Compute `x W^T + b`: x bfloat16 [..., N], weight [M, N]."""
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, Int4Weight):
        y = _int4_linear(rows.contiguous(), weight)
        y = y if bias is None else y + bias
    else:
        count = len(rows)
        if count < FEW_ROWS and x.dtype == torch.bfloat16 and weight.shape[0] * weight.shape[1] >= LARGE:
            rows = F.pad(rows, (0, 0, 0, FEW_ROWS - count))
        y = torch.ops.mkldnn._linear_pointwise(rows, weight.laid, bias, "none", [], "")[:count]
    return y.view(*x.shape[:-1], -1)


def _int4_linear(rows: Tensor, weight: Int4Weight) -> Tensor:
    if len(rows) > INT4_ROWS and int4.can_unpack(weight):
        scales = weight.scales[..., 0].t().float().contiguous()
        return torch.cat([F.linear(rows, piece) for piece in int4.unpack(weight.codes, scales)], dim=1)
    y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, weight.codes, BLOCK_WEIGHTS, weight.scales)
    return y


def head(x: Tensor, weight: HeadWeight, forbidden: Tensor | None = None) -> Tensor:
    """Multiply by the tied embedding: x [B, N], logits float32 [B, M], the greatest of them exact in float32.

    The fast product, rounded to bfloat16, only says which logits can be the greatest; those are computed again from
    the weights themselves (bfloat16 logits tie, asr.md section 9).
    """
    logits = linear(x.to(torch.bfloat16), weight.fast, None).float()
    for row, wide in zip(logits, x.float(), strict=True):
        least, most = row.aminmax()
        margin = CANDIDATE_SHARE * torch.maximum(-least, most)
        if forbidden is not None:
            row.masked_fill_(forbidden, -torch.inf)
            most = row.max()
        candidates = (row >= most - margin).nonzero()[:, 0]
        if len(candidates) > MAX_CANDIDATES:
            row.copy_(reference.head(wide[None], weight.exact, forbidden)[0])
        else:
            row[candidates] = reference.embedding(candidates, weight.exact, torch.float32) @ wide
    return logits
