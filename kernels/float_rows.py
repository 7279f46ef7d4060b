"""A float32 weight matrix times 1 to 64 rows, in Triton: frames of the codec, whose rate doubles on their way.

cuBLAS takes 8 us for a matrix that the memory gives in 1.  Here it is one pass over the weights, with the RMS norm
before it, the gate beside it and the scaled residual behind it folded in: up to 8 rows by plain arithmetic, and from 16
on by the tensor core.  That has no float32 of its own, so each factor is split in two of TF32, and three of the four
products are taken; what is left out is below 2^-21 of a product.

Equal to, up to rounding: `reference.rms_norm`, `reference.linear`, `reference.swiglu`, a product and a sum.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = (1, 2, 4, 8, 16, 32, 64)
TILED_ROWS = 16
"""From so many rows on by the tensor core."""


def settings(rows: int, gated: bool) -> dict[str, Any]:
    """Return how to launch for so many rows.

    Up to 8 each program keeps a sum for every weight of a block and every row, above one for every output and row.
    """
    if rows >= TILED_ROWS:
        return {"BLOCK_OUT": 16, "BLOCK_IN": 128 if rows <= 32 else 64, "num_warps": 4, "num_stages": 3}
    wide = rows <= 2
    return {
        "BLOCK_OUT": 4 if wide or not gated else 2,
        "BLOCK_IN": 512 if wide else 256,
        "num_warps": 4,
        "num_stages": 1,
    }


@triton.jit
def product(
    x, gain, weight, up, first, n_out, n_in, eps, ROWS: tl.constexpr, HAS_NORM: tl.constexpr, GATED: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Return `norm(x) weight[first:]^T`, gated if asked for, [ROWS, BLOCK_OUT]; x [ROWS, n_in]."""
    row, out, into = tl.arange(0, ROWS), first + tl.arange(0, BLOCK_OUT), tl.arange(0, BLOCK_IN)
    if ROWS >= 16:
        total = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
        other = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
    else:
        total = tl.zeros([ROWS, BLOCK_OUT, BLOCK_IN], tl.float32)
        other = tl.zeros([ROWS, BLOCK_OUT, BLOCK_IN], tl.float32)
    squares = tl.zeros([ROWS, BLOCK_IN], tl.float32)
    for start in range(0, n_in, BLOCK_IN):
        at = start + into
        place = out[:, None].to(tl.int64) * n_in + at[None, :]
        there = (out < n_out)[:, None] & (at < n_in)[None, :]
        w = tl.load(weight + place, there, 0.0)
        if GATED:
            u = tl.load(up + place, there, 0.0)
        held = tl.load(x + row[:, None] * n_in + at[None, :], (at < n_in)[None, :] & (row >= 0)[:, None], 0.0)
        if HAS_NORM:
            squares += held * held
            held *= tl.load(gain + at, at < n_in, 0.0)[None, :]
        if ROWS >= 16:
            total = tl.dot(held, tl.trans(w), total, input_precision="tf32x3")
            if GATED:
                other = tl.dot(held, tl.trans(u), other, input_precision="tf32x3")
        else:
            total += w[None, :, :] * held[:, None, :]
            if GATED:
                other += u[None, :, :] * held[:, None, :]
    result = total
    if ROWS < 16:
        result = tl.sum(total, 2)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, 1) / n_in + eps)[:, None]
        result *= factor
    if GATED:
        beside = other
        if ROWS < 16:
            beside = tl.sum(other, 2)
        if HAS_NORM:
            beside *= factor
        result = result * tl.sigmoid(result) * beside
    return result


@triton.jit
def _float_rows(
    x, gain, weight, up, scale, residual, y, n_out, n_in, eps, ROWS: tl.constexpr, HAS_NORM: tl.constexpr,
    GATED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SCALE: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_OUT
    result = product(x, gain, weight, up, first, n_out, n_in, eps, ROWS, HAS_NORM, GATED, BLOCK_OUT, BLOCK_IN)
    row, out = tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_OUT)
    there = (out < n_out)[None, :] & (row >= 0)
    if HAS_SCALE:
        result *= tl.load(scale + out, out < n_out, 0.0)[None, :]
    if HAS_RESIDUAL:
        result += tl.load(residual + row * n_out + out[None, :], there, 0.0)
    tl.store(y + row * n_out + out[None, :], result, there)


@triton.jit
def _three(
    x, gain, wq, wk, wv, y, n_out, n_in, eps, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of one projection, 3); y is [3, ROWS, n_out]."""
    which = tl.program_id(1)
    weight = wq
    if which == 1:
        weight = wk
    if which == 2:
        weight = wv
    first = tl.program_id(0) * BLOCK_OUT
    result = product(x, gain, weight, weight, first, n_out, n_in, eps, ROWS, True, False, BLOCK_OUT, BLOCK_IN)
    row, out = tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_OUT)[None, :]
    tl.store(y + (which * ROWS + row) * n_out + out, result, (out < n_out) & (row >= 0))


def float_rows(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    up: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Compute `W norm(x)`, or `silu(W norm(x)) * (U norm(x))`, times `scale` [M], plus `residual` [R, M].

    x [R, N] with R of `ROWS`, weight and up [M, N]; all float32, contiguous, on one CUDA device.
    """
    rows, n_in = x.shape
    n_out = weight.shape[0]
    y = torch.empty(rows, n_out, device=x.device)
    tile = settings(rows, up is not None)
    _float_rows[(triton.cdiv(n_out, tile["BLOCK_OUT"]),)](
        x, x if norm is None else norm, weight,
        weight if up is None else up, x if scale is None else scale, x if residual is None else residual, y, n_out,
        n_in, eps, ROWS=rows, HAS_NORM=norm is not None, GATED=up is not None, HAS_RESIDUAL=residual is not None,
        HAS_SCALE=scale is not None, **tile,
    )  # fmt: skip
    return y


def three_float_rows(x: Tensor, norm: Tensor, eps: float, weights: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute three products of `norm(x)` in one pass: x [R, N], weights [M, N] each -> [3, R, M]."""
    rows, n_in = x.shape
    n_out = weights[0].shape[0]
    y = torch.empty(3, rows, n_out, device=x.device)
    tile = settings(rows, False)
    grid = triton.cdiv(n_out, tile["BLOCK_OUT"]), 3
    _three[grid](x, norm, *weights, y, n_out, n_in, eps, ROWS=rows, **tile)
    return y
