"""Plain torch for every operation: what each faster kernel must equal, and what runs where there is none.

Axis letters: B batch, T time, H heads, D head width, N input width, M output width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.kernels.packed import PackedWeight

HEAD_ROWS = 512
"""Rows of the tied head widened to float32 at a time: they stay in the cache, and no float32 copy of all exists."""


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Unpack [M, N] (formats.md section 0); exact in float32, rounded once in other dtypes."""
    values = dequantize_blocks(weight, weight.blocks, dtype)
    return values.view(weight.shape)


def dequantize_blocks(weight: PackedWeight, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Unpack some blocks, uint8 [..., block bytes], to [..., 32]; `weight` only names the format."""
    scale = blocks[..., :2].contiguous().view(torch.float16).to(torch.float32)
    if weight.format == "q4_0":
        packed = blocks[..., 2:]
        codes = torch.cat((packed & 15, packed >> 4), dim=-1).to(torch.float32) - 8
    else:
        codes = blocks[..., 2:].contiguous().view(torch.int8).to(torch.float32)
    return (codes * scale).to(dtype)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """Compute `x W^T + b`: x [..., N], weight [M, N], result [..., M] in the dtype of x."""
    dense = dequantize(weight, x.dtype) if isinstance(weight, PackedWeight) else weight
    return F.linear(x, dense, bias)


def embedding(ids: Tensor, weight: Tensor | PackedWeight, dtype: torch.dtype) -> Tensor:
    """Look up rows: ids int64 [...], weight [M, N], result [..., N]; only the rows asked for are unpacked."""
    if isinstance(weight, PackedWeight):
        rows = weight.blocks[ids]
        return dequantize_blocks(weight, rows, dtype).flatten(-2)
    return weight[ids].to(dtype)


def head(x: Tensor, weight: Tensor | PackedWeight, forbidden: Tensor | None = None) -> Tensor:
    """Multiply by the tied embedding in float32: x [B, N], weight [M, N], logits float32 [B, M].

    `forbidden`, bool [M], says which cannot be chosen: their logits are -inf.
    """
    logits = _head(x, weight)
    return logits if forbidden is None else logits.masked_fill_(forbidden, -torch.inf)


def _head(x: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """Multiply in float32.

    bfloat16 logits tie and then the argmax is arbitrary (asr.md section 9), so products and sums are float32.
    """
    if isinstance(weight, Tensor) and weight.dtype == torch.float32:
        return F.linear(x.float(), weight)
    if isinstance(weight, Tensor) and weight.is_cuda:
        logits: Tensor = torch.mm(x.to(weight.dtype), weight.t(), out_dtype=torch.float32)
        return logits
    wide = x.float()
    logits = torch.empty(x.shape[0], weight.shape[0], device=x.device)
    # Two buffers for all pieces: to take and give back 6 MB each time costs more in page faults than the arithmetic.
    rows, products = (torch.empty(HEAD_ROWS, x.shape[1], device=x.device) for _ in range(2))
    for first in range(0, weight.shape[0], HEAD_ROWS):
        last = min(first + HEAD_ROWS, weight.shape[0])
        count = last - first
        if isinstance(weight, PackedWeight):
            rows[:count] = dequantize_blocks(weight, weight.blocks[first:last], torch.float32).flatten(-2)
        else:
            rows[:count] = weight[first:last]
        for b in range(x.shape[0]):
            # Not a float32 matmul: on two cores MKL's takes 60 ms for all of this at one time and 400 at another.
            torch.mul(rows[:count], wide[b], out=products[:count])
            torch.sum(products[:count], dim=1, out=logits[b, first:last])
    return logits


def choose(logits: Tensor, apart: int) -> Tensor:
    """Say what greedy decoding needs to know of logits float32 [B, M], on the same device.

    Returns int32 [B, 5]: the id with the greatest logit but `apart`; as the bits of float32, that logit, the one of
    `apart`, and the logarithm of the sum of all exponentials; and the more likely of both ids, of equals `apart`.
    """
    others = logits.clone()
    others[:, apart] = -torch.inf
    best, ids = others.max(dim=-1)
    numbers = torch.stack((best, logits[:, apart], logits.logsumexp(dim=-1)), dim=-1)
    chosen = torch.where(logits[:, apart] >= best, apart, ids)
    return torch.cat(
        (ids[:, None].to(torch.int32), numbers.view(torch.int32), chosen[:, None].to(torch.int32)), dim=-1
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `x rsqrt(mean(x^2) + eps) w` with float32 inside: x [..., N], weight [N], result as x."""
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate neighbouring pairs (asr.md section 10, Mistral layout): x [B, T, H, D], turn complex64 [T, D / 2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn[:, None, :]).flatten(-2).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with grouped heads: q [B, T, H, D], k and v [B, Hkv, S, D], mask bool [T, S]; result [B, T, H D].

    The queries of one group share their keys, so a group is laid along the query axis: no key is copied.
    """
    batch, steps, heads, width = q.shape
    groups = heads // k.shape[1]
    grouped = q.view(batch, steps, k.shape[1], groups, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
    if mask is not None:
        mask = mask.repeat(groups, 1)
    out: Tensor = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
    by_head: Tensor = out.unflatten(2, (groups, steps)).permute(0, 3, 1, 2, 4)
    return by_head.reshape(batch, steps, heads * width)


def swiglu(x: Tensor, gate: Tensor | PackedWeight, up: Tensor | PackedWeight) -> Tensor:
    """Compute `silu(gate x) * (up x)`: x [..., N], gate and up [M, N], result [..., M]."""
    return F.silu(linear(x, gate)) * linear(x, up)
